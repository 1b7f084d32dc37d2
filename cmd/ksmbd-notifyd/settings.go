// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"
	"strings"

	"ksmbd-notifyd/ipc"
)

// settingsFile is where the settings are unless it is said otherwise. It is beside
// ksmbd.conf(5) and in its format; in that file each section would be a share.
const settingsFile = "/etc/ksmbd/ksmbd-notifyd.conf"

// settings are what the administrator wants of the daemon.
type settings struct {
	policy  ipc.Policy
	metrics string // the address of the command "metrics"
	verbose int    // how many -v there are at least
}

// noSettings are what there is without a file.
func noSettings() settings {
	return settings{policy: ipc.Policy{Shares: make(map[string]bool)}, metrics: "127.0.0.1:9842"}
}

// readSettings reads the file. That which nobody has asked for need not be there.
func readSettings(path string) (settings, error) {
	s := noSettings()
	c, err := readConf(path, newestTools)
	if errors.Is(err, fs.ErrNotExist) && path == settingsFile {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if c.ignored != nil { // of which ksmbd-tools would say nothing
		return s, fmt.Errorf("reading %s: %w", path, c.ignored)
	}
	for _, section := range c.sections {
		for _, e := range section.entries {
			e.value = strings.TrimRight(e.value, " \t")
			if strings.EqualFold(section.name, "global") {
				err = s.global(e)
			} else {
				err = s.share(section.name, e)
			}
			if err != nil {
				return s, fmt.Errorf("%s, [%s] %s = %s: %w", path, shortened(section.name), shortened(e.key), printable(shortened(e.value)), err)
			}
		}
	}
	return s, nil
}

var errUnknownKey = errors.New("there is no such setting")

func (s *settings) global(e entry) (err error) {
	switch strings.ToLower(e.key) {
	case "change notify":
		var on bool
		on, err = yes(e.value)
		s.policy.Off = !on
	case "max watches per user":
		s.policy.UserWatches, err = number(e.value, 1<<30)
	case "max queued per client":
		s.policy.ClientKiB, err = number(e.value, 1<<20)
	case "metrics":
		s.metrics, err = address(e.value)
	case "verbose":
		s.verbose, err = number(e.value, len(verbosity)-1)
	default:
		err = errUnknownKey
	}
	return err
}

func (s *settings) share(name string, e entry) (err error) {
	if !strings.EqualFold(e.key, "change notify") {
		if all := noSettings(); !errors.Is(all.global(e), errUnknownKey) {
			return errors.New("it is for all shares, and stands in [global]")
		}
		return errUnknownKey
	}
	s.policy.Shares[ipc.FoldShare(name)], err = yes(e.value)
	return err
}

func yes(value string) (bool, error) {
	switch strings.ToLower(value) {
	case "yes", "true", "on", "1":
		return true, nil
	case "no", "false", "off", "0":
		return false, nil
	}
	return false, errors.New("it is yes or no")
}

func number(value string, most int) (int, error) {
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("it is a number from 0 to %d", most)
	}
	return n, nil
}

// address returns where metrics are, a port being one of this machine alone.
func address(value string) (string, error) {
	if port, err := strconv.ParseUint(value, 10, 16); err == nil && port > 0 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port)).String(), nil
	}
	a, err := netip.ParseAddrPort(value)
	if err != nil || a.Port() == 0 {
		return "", errors.New("it is a port of 127.0.0.1, or ADDRESS:PORT")
	}
	return a.String(), nil
}
