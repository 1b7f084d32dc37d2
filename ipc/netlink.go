// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"ksmbd-notifyd/genl"
)

// Errors of a daemon that need no more explanation.
var (
	// ErrNoFamily: no ksmbd that can notify is loaded.
	ErrNoFamily = errors.New("the kernel has no generic netlink family " + genl.FamilyName +
		": load the ksmbd module that has this project's notify patch")
	// ErrBusy: there can be one daemon only.
	ErrBusy = errors.New("another ksmbd-notifyd is registered with ksmbd")
	// ErrVersion: daemon and module are of different makes.
	ErrVersion = fmt.Errorf("ksmbd does not speak protocol version %d: "+
		"module and daemon must be of the same release", genl.ProtocolVersion)

	// errLost: ksmbd was unloaded or takes us for somebody else.
	errLost = errors.New("registration with ksmbd is lost")
)

// An operation with a reply is sent without Acknowledge: the ack would stay
// behind as the answer to the next one. An error comes in any case.
const (
	withReply    = netlink.Request
	withoutReply = netlink.Request | netlink.Acknowledge
)

// socket is what is used of a *genetlink.Conn.
type socket interface {
	GetFamily(name string) (genetlink.Family, error)
	JoinGroup(id uint32) error
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
	Execute(m genetlink.Message, family uint16, flags netlink.HeaderFlags) ([]genetlink.Message, error)
	Receive() ([]genetlink.Message, []netlink.Message, error)
	Close() error
}

func dialSocket() (socket, error) {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil, err
	}
	// So that errors carry ksmbd's own words.
	if err := c.SetOption(netlink.ExtendedAcknowledge, true); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// joinGroup makes s hear one multicast group of a family.
func joinGroup(s socket, family genetlink.Family, name string) error {
	for _, g := range family.Groups {
		if g.Name == name {
			if err := s.JoinGroup(g.ID); err != nil {
				return fmt.Errorf("joining group %s of family %s: %w", name, family.Name, err)
			}
			return nil
		}
	}
	return fmt.Errorf("family %s has no group %s", family.Name, name)
}

// getFamily resolves ksmbd's family. Its id differs each time the module is
// loaded. ErrNoFamily says that there is none.
func getFamily(s socket) (genetlink.Family, error) {
	family, err := s.GetFamily(genl.FamilyName)
	if errors.Is(err, os.ErrNotExist) {
		return family, ErrNoFamily
	}
	if err != nil {
		return family, fmt.Errorf("looking for family %s: %w", genl.FamilyName, err)
	}
	return family, nil
}

// FindFamily fails with ErrNoFamily unless a ksmbd that can notify is loaded.
func FindFamily() error {
	s, err := dialSocket()
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	defer s.Close()
	_, err = getFamily(s)
	return err
}

// ksmbd is the Kernel that is one: a registered socket.
type ksmbd struct {
	log    *slog.Logger
	socket socket
	family genetlink.Family

	registrations uint32 // of all daemons so far, once this one is registered
}

func (k *ksmbd) execute(cmd uint8, data []byte, flags netlink.HeaderFlags) ([]genetlink.Message, error) {
	m := genetlink.Message{Header: genetlink.Header{Command: cmd, Version: k.family.Version}, Data: data}
	return k.socket.Execute(m, k.family.ID, flags)
}

// register makes k's socket the daemon and returns the module's release. Closing
// the socket is the only way back.
func (k *ksmbd) register() (release string, err error) {
	data, err := genl.Register{Version: genl.ProtocolVersion}.Encode()
	if err != nil {
		return "", err
	}
	msgs, err := k.execute(genl.CmdRegister, data, withReply)
	switch {
	case errors.Is(err, unix.EBUSY):
		return "", ErrBusy
	case errors.Is(err, unix.EPROTONOSUPPORT):
		return "", ErrVersion
	case errors.Is(err, unix.ENOENT): // unloaded just now
		return "", ErrNoFamily
	case err != nil:
		return "", fmt.Errorf("registering with ksmbd: %w", err)
	case len(msgs) != 1:
		return "", fmt.Errorf("%w: %d replies to register", errLost, len(msgs))
	}
	reply, err := genl.DecodeRegister(msgs[0].Data)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errLost, err)
	}
	if reply.Version != genl.ProtocolVersion {
		return "", ErrVersion
	}

	// Records take less than twice on the wire of what they take in a
	// client's buffer, and an error brings the whole message back.
	size := 2*min(int(reply.MaxBufferLength), 64<<20) + 1<<16
	if err := errors.Join(k.socket.SetReadBuffer(size), k.socket.SetWriteBuffer(size)); err != nil {
		return "", fmt.Errorf("sizing netlink socket to %d bytes: %w", size, err)
	}
	k.registrations = reply.Registrations
	k.log.Info("registered with ksmbd", "module", reply.Release)
	return reply.Release, nil
}

// Next implements Kernel. The descriptor of a watch belongs to this process
// when it returns: ksmbd installs it before the request's system call ends.
func (k *ksmbd) Next() (genl.Item, error) {
	none := genl.Item{FD: -1}
	msgs, err := k.execute(genl.CmdNext, nil, withReply)
	var errno unix.Errno
	switch {
	case errors.Is(err, unix.EAGAIN): // not by Timeout(), which others also are
		return none, ErrAgain
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPERM):
		// The family's id is nobody's any more, or of a module loaded since.
		return none, fmt.Errorf("%w: %w", errLost, err)
	case errors.As(err, &errno):
		return none, fmt.Errorf("%w: %w", ErrRetry, err)
	case err != nil: // replies out of step: only a new socket helps
		return none, fmt.Errorf("%w: %w", errLost, err)
	case len(msgs) != 1:
		return none, fmt.Errorf("%w: %d replies to next", errLost, len(msgs))
	}
	item, err := genl.DecodeItem(msgs[0].Data)
	if err != nil {
		if item.FD > 2 { // whatever is said, not the standard ones
			unix.Close(item.FD)
		}
		return none, err
	}
	return item, nil
}

// Armed implements Kernel.
func (k *ksmbd) Armed(watch uint64, errno unix.Errno) error {
	data, err := genl.Armed{WatchID: watch, Errno: uint32(errno)}.Encode()
	if err != nil {
		return err
	}
	_, err = k.execute(genl.CmdArmed, data, withoutReply)
	return err
}

// Complete implements Kernel.
func (k *ksmbd) Complete(request uint64, records []genl.Record) error {
	return k.complete(genl.Complete{RequestID: request, Records: records})
}

// CompleteStatus implements Kernel.
func (k *ksmbd) CompleteStatus(request uint64, status genl.Status) error {
	return k.complete(genl.Complete{RequestID: request, Status: status})
}

// Causes implements Kernel.
func (k *ksmbd) Causes() (genl.Causes, error) {
	msgs, err := k.execute(genl.CmdCauses, nil, withReply)
	switch {
	case err != nil:
	case len(msgs) != 1:
		err = fmt.Errorf("%d replies", len(msgs))
	default:
		var m genl.Causes
		if m, err = genl.DecodeCauses(msgs[0].Data); err == nil {
			return m, nil
		}
	}
	k.log.Debug("asking ksmbd for causes failed", "err", err)
	return genl.Causes{}, err
}

func (k *ksmbd) complete(m genl.Complete) error {
	data, err := m.Encode()
	if err != nil {
		return err
	}
	_, err = k.execute(genl.CmdComplete, data, withoutReply)
	return err
}
