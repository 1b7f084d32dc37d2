// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// record is one change record as a client was told it.
type record struct {
	action string // added, removed, modified, old name, new name; enum-dir has no name
	name   string // relative to the watched directory, '/' between components
}

func (r record) String() string { return strings.TrimSpace(r.action + " " + r.name) }

// actions are the FILE_ACTION values of MS-FSCC 2.7.1 as smbclient prints them.
var actions = map[string]string{
	"0001": "added",
	"0002": "removed",
	"0003": "modified",
	"0004": "old name",
	"0005": "new name",
}

// watcher is an smbclient that runs its notify command: a watch tree on a directory, every completion filter. Or it is
// another program that prints what it is told in the same way.
type watcher struct {
	cmd   *exec.Cmd
	dir   string      // the watched directory, as the server sees it
	lines chan string // what smbclient says; closed when it ends
	marks int
}

const (
	markPrefix = ".mark-"
	enumDir    = "enum-dir"
)

// watch starts a watcher of the directory sub of the share and returns when its first request is known to pend.
func watch(sub, user string, args ...string) (*watcher, error) {
	w, err := startWatcher(sub, user, args...)
	if err != nil {
		return nil, err
	}
	if _, err := w.sync(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// startWatcher starts a watcher and does not wait for its first request.
func startWatcher(sub, user string, args ...string) (*watcher, error) {
	// smbclient flushes its output only to a terminal.
	args = append([]string{"-oL", "smbclient", "//127.0.0.1/TEST", "-U", user, "-c", fmt.Sprintf("notify %q", sub)}, args...)
	return startProgram(sub, "stdbuf", args...)
}

// startProgram starts a watcher of the directory sub of the share that is the program.
func startProgram(sub, program string, args ...string) (*watcher, error) {
	w := &watcher{cmd: exec.Command(program, args...), dir: filepath.Join(share, sub), lines: make(chan string, 4096)}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	w.cmd.Stderr = w.cmd.Stdout
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			w.lines <- s.Text()
		}
		close(w.lines)
	}()
	return w, nil
}

// sync waits until the watcher is told of changes, and returns what it was told meanwhile.
// Nothing before its first request is told, so it makes marks until one of them is.
func (w *watcher) sync() ([]record, error) {
	var got []record
	limit := 500 * time.Millisecond
	for deadline := time.Now().Add(long); ; limit *= 2 { // a machine that is slow may need longer
		err := w.mark(limit, &got)
		if err == nil {
			break
		}
		if !errors.Is(err, errNotTold) || time.Now().After(deadline) {
			return got, err
		}
	}
	more, err := w.told() // the marks that were still on their way
	return append(got, more...), err
}

func (w *watcher) close() {
	w.cmd.Process.Kill()
	for range w.lines {
	}
	w.cmd.Wait()
}

// told returns what the client was told up to now: all records before that of a file made now.
// Change records of one watch keep their order, so none is still on its way.
func (w *watcher) told() ([]record, error) {
	var got []record
	err := w.mark(long, &got)
	return got, err
}

var errNotTold = errors.New("the client was not told of a new file")

// mark makes and removes a file in the watched directory and waits for its record; other records go to got.
func (w *watcher) mark(limit time.Duration, got *[]record) error {
	w.marks++
	name := fmt.Sprintf("%s%d", markPrefix, w.marks)
	path := filepath.Join(w.dir, name)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	f.Close()
	defer os.Remove(path)
	timeout := time.After(limit)
	for {
		select {
		case line, ok := <-w.lines:
			if !ok {
				return errors.New("the client ended")
			}
			r, err := parse(line)
			switch {
			case err != nil:
				return err
			case r == record{"added", name}:
				return nil
			case strings.HasPrefix(r.name, markPrefix):
			default:
				*got = append(*got, r)
			}
			if r.action == enumDir { // the mark may be among what it stands for
				os.Remove(path)
				return w.mark(limit, got)
			}
		case <-timeout:
			return fmt.Errorf("%w in %v", errNotTold, limit)
		}
	}
}

// parse reads a line of smbclient's notify command.
func parse(line string) (record, error) {
	if line == "NOTIFY_ENUM_DIR" {
		return record{action: enumDir}, nil
	}
	code, name, _ := strings.Cut(line, " ")
	action, ok := actions[code]
	if !ok {
		return record{}, fmt.Errorf("the client says: %s", line)
	}
	return record{action, strings.ReplaceAll(name, `\`, "/")}, nil
}

// smbclient runs commands as another client.
func smbclient(user, commands string, args ...string) error {
	return command(append([]string{"smbclient", "//127.0.0.1/TEST", "-U", user, "-c", commands}, args...)...)
}
