// SPDX-License-Identifier: GPL-2.0-or-later

package genl

// The family, see ksmbd-notify.yaml. A test fails when the names or values
// here, in the spec and in kernel/notify_uapi.h differ.
const (
	FamilyName      = "ksmbd-notify"
	FamilyVersion   = 1
	McgrpNotifyd    = "notifyd"
	ProtocolVersion = 2
)

// ItemType says what an item is.
type ItemType uint32

const (
	ItemTypeWatch   ItemType = 1
	ItemTypeRequest ItemType = 2
	ItemTypeCancel  ItemType = 3
	ItemTypeUnwatch ItemType = 4
)

// Action says what happened to a record's name, MS-FSCC 2.7.1.
type Action uint32

const (
	ActionAdded          Action = 1
	ActionRemoved        Action = 2
	ActionModified       Action = 3
	ActionRenamedOldName Action = 4
	ActionRenamedNewName Action = 5
)

// Status ends a request without records.
type Status uint32

const (
	StatusEnumDir       Status = 1
	StatusDeletePending Status = 2
)

// Attributes of register.
const (
	ARegisterVersion         = 1
	ARegisterMaxBufferLength = 2
	ARegisterAckTimeout      = 3
	ARegisterRelease         = 4
	ARegisterRegistrations   = 5
)

// Attributes of items.
const (
	AItemsItem = 1
	AItemsAll  = 2
)

// Attributes of an item within items.
const (
	AItemPad              = 1
	AItemType             = 2
	AItemWatchID          = 3
	AItemRequestID        = 4
	AItemFD               = 5
	AItemCompletionFilter = 6
	AItemWatchTree        = 7
	AItemRescan           = 8
	AItemBufferLength     = 9
	AItemUser             = 10
	AItemShare            = 11
	AItemDevice           = 12
	AItemFilesystem       = 13
	AItemClient           = 14
)

// Attributes of ack.
const (
	AAckPad   = 1
	AAckID    = 2
	AAckErrno = 3
)

// Attributes of complete.
const (
	ACompletePad       = 1
	ACompleteRequestID = 2
	ACompleteStatus    = 3
	ACompleteRecord    = 4
)

// Attributes of a record within complete.
const (
	ARecordAction    = 1
	ARecordName      = 2
	ARecordDirectory = 3
)

// Attributes of causes.
const (
	ACausesLost  = 1
	ACausesCause = 2
	ACausesPad   = 3
)

// Attributes of a cause within causes.
const (
	ACauseThread           = 1
	ACauseCompletionFilter = 2
	ACauseFile             = 3
	ACauseBegun            = 4
	ACauseEnded            = 5
	ACausePad              = 6
)

// Commands.
const (
	CmdRegister = 1
	CmdReady    = 2
	CmdNext     = 3
	CmdAck      = 4
	CmdComplete = 5
	CmdCauses   = 6
)
