// SPDX-License-Identifier: GPL-2.0-or-later

package smb2

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// headerLen is the length of the SMB2 header, MS-SMB2 2.2.1.
const headerLen = 64

// Command is an SMB2 command code, MS-SMB2 2.2.1.2.
type Command uint16

const (
	Negotiate      Command = 0
	SessionSetup   Command = 1
	Logoff         Command = 2
	TreeConnect    Command = 3
	TreeDisconnect Command = 4
	Create         Command = 5
	Close          Command = 6
	Flush          Command = 7
	Read           Command = 8
	Write          Command = 9
	Ioctl          Command = 11
	Cancel         Command = 12
	Echo           Command = 13
	QueryDirectory Command = 14
	ChangeNotify   Command = 15
	QueryInfo      Command = 16
	SetInfo        Command = 17
	OplockBreak    Command = 18
)

func (c Command) String() string {
	names := [...]string{"NEGOTIATE", "SESSION_SETUP", "LOGOFF", "TREE_CONNECT", "TREE_DISCONNECT", "CREATE", "CLOSE", "FLUSH",
		"READ", "WRITE", "LOCK", "IOCTL", "CANCEL", "ECHO", "QUERY_DIRECTORY", "CHANGE_NOTIFY", "QUERY_INFO", "SET_INFO",
		"OPLOCK_BREAK"}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("command %d", uint16(c))
}

// Flags are the flags of the header, MS-SMB2 2.2.1.2.
type Flags uint32

const (
	FlagServerToRedir Flags = 0x01
	FlagAsync         Flags = 0x02
	FlagRelated       Flags = 0x04
	FlagSigned        Flags = 0x08
)

// Status is an NTSTATUS, MS-ERREF 2.3.1. As an error it says that a response
// carried it.
type Status uint32

const (
	StatusSuccess                Status = 0
	StatusPending                Status = 0x00000103
	StatusNotifyCleanup          Status = 0x0000010b
	StatusNotifyEnumDir          Status = 0x0000010c
	StatusNoMoreFiles            Status = 0x80000006
	StatusInvalidParameter       Status = 0xc000000d
	StatusMoreProcessingRequired Status = 0xc0000016
	StatusAccessDenied           Status = 0xc0000022
	StatusSharingViolation       Status = 0xc0000043
	StatusObjectNameNotFound     Status = 0xc0000034
	StatusDeletePending          Status = 0xc0000056
	StatusInsufficientResources  Status = 0xc000009a
	StatusInternalError          Status = 0xc00000e5
	StatusCancelled              Status = 0xc0000120
	StatusFileClosed             Status = 0xc0000128
	StatusUserSessionDeleted     Status = 0xc0000203
	StatusNetworkSessionExpired  Status = 0xc000035c
)

func (s Status) String() string {
	names := map[Status]string{
		StatusSuccess:                "SUCCESS",
		StatusPending:                "PENDING",
		StatusNotifyCleanup:          "NOTIFY_CLEANUP",
		StatusNotifyEnumDir:          "NOTIFY_ENUM_DIR",
		StatusNoMoreFiles:            "NO_MORE_FILES",
		StatusInvalidParameter:       "INVALID_PARAMETER",
		StatusMoreProcessingRequired: "MORE_PROCESSING_REQUIRED",
		StatusAccessDenied:           "ACCESS_DENIED",
		StatusSharingViolation:       "SHARING_VIOLATION",
		StatusObjectNameNotFound:     "OBJECT_NAME_NOT_FOUND",
		StatusDeletePending:          "DELETE_PENDING",
		StatusInsufficientResources:  "INSUFFICIENT_RESOURCES",
		StatusInternalError:          "INTERNAL_ERROR",
		StatusCancelled:              "CANCELLED",
		StatusFileClosed:             "FILE_CLOSED",
		StatusUserSessionDeleted:     "USER_SESSION_DELETED",
		StatusNetworkSessionExpired:  "NETWORK_SESSION_EXPIRED",
	}
	if name, ok := names[s]; ok {
		return name
	}
	return fmt.Sprintf("status %#08x", uint32(s))
}

func (s Status) Error() string { return s.String() }

// Header is the SMB2 header as it is on the wire, MS-SMB2 2.2.1.
type Header struct {
	Protocol      [4]byte
	StructureSize uint16
	CreditCharge  uint16
	Status        Status
	Command       Command
	Credits       uint16 // asked for, or granted
	Flags         Flags
	NextCommand   uint32
	MessageID     uint64
	ID            uint64 // AsyncId with FlagAsync, else TreeId in the upper half
	SessionID     uint64
	Signature     [16]byte
}

func (h *Header) encode() []byte {
	copy(h.Protocol[:], "\xfeSMB")
	h.StructureSize = headerLen
	return pack(h)
}

func decodeHeader(b []byte) (Header, error) {
	var h Header
	if _, err := binary.Decode(b, le, &h); err != nil {
		return h, fmt.Errorf("SMB2 header: %w", err)
	}
	if string(h.Protocol[:]) != "\xfeSMB" || h.StructureSize != headerLen {
		return h, errors.New("no SMB2 header")
	}
	return h, nil
}

// le is SMB2's byte order.
var le = binary.LittleEndian

// pack lays fixed-size values out one after the other, little-endian and
// without padding. Each value's type is its width on the wire.
func pack(values ...any) []byte {
	var b []byte
	for _, v := range values {
		var err error
		if b, err = binary.Append(b, le, v); err != nil {
			panic(err) // a type without a fixed size: a bug of this package
		}
	}
	return b
}
