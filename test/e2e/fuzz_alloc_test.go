// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ksmbd-notifyd/genl"
	"ksmbd-notifyd/test/fuzz"
	"ksmbd-notifyd/test/smb2"
)

// failslab is where the kernel is told which allocations to fail, see fault-injection.rst of its documentation.
const failslab = "/sys/kernel/debug/failslab/"

func setFailslab(name string, value uint64) error {
	text := strconv.FormatUint(value, 10)
	if strings.HasPrefix(name, "require") { // these take addresses
		text = fmt.Sprintf("%#x", value)
	}
	return os.WriteFile(filepath.Join(failslab, name), []byte(text), 0)
}

// site is a place in the kernel part from which a function is called.
type site struct {
	caller, callee string
	after          uint64 // the address that the function returns to, from the start of the module's text
}

func (s site) String() string { return s.caller + " → " + s.callee }

// never allocates, and is called often.
var neverAllocates = regexp.MustCompile(`^(__asan|__ubsan|__kasan|_raw_|__raw|__x86|__fentry|__stack_chk|lock|mem|str|_printk|k?v?free|__list|` +
	`refcount|rcu|__rcu|debug_|trace_|preempt|__sanitizer|fput|mutex_|init_wait|ida_free|__might|queue_|mod_|dput|path_put)`)

// functionsFile names the functions of notify*.c, see test/guest/debug.sh.
const functionsFile = "/rig/functions"

// callSites are the calls that the functions of notify*.c make.
func callSites(module string) ([]site, error) {
	names, err := os.ReadFile(functionsFile)
	if err != nil {
		return nil, err
	}
	of := strings.Fields(string(names))
	f, err := elf.Open(module)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		return nil, err
	}
	text := f.Section(".text")
	if text == nil || f.Section(".rela.text") == nil {
		return nil, fmt.Errorf("%s: no .text", module)
	}
	var ours []elf.Symbol
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC && int(s.Section) < len(f.Sections) && f.Sections[s.Section] == text && slices.Contains(of, s.Name) {
			ours = append(ours, s)
		}
	}
	rela, err := f.Section(".rela.text").Data()
	if err != nil {
		return nil, err
	}
	var sites []site
	for ; len(rela) >= 24; rela = rela[24:] {
		at, info := f.ByteOrder.Uint64(rela), f.ByteOrder.Uint64(rela[8:])
		kind, n := elf.R_X86_64(info&0xffffffff), int(info>>32)
		if kind != elf.R_X86_64_PLT32 && kind != elf.R_X86_64_PC32 || n == 0 || n > len(symbols) {
			continue
		}
		i := slices.IndexFunc(ours, func(s elf.Symbol) bool { return at >= s.Value && at < s.Value+s.Size })
		if i < 0 || neverAllocates.MatchString(symbols[n-1].Name) {
			continue
		}
		var opcode [1]byte
		if _, err := text.ReadAt(opcode[:], int64(at-1)); err != nil || opcode[0] != 0xe8 { // call
			continue
		}
		sites = append(sites, site{ours[i].Name, symbols[n-1].Name, at + 4})
	}
	if len(sites) == 0 {
		return nil, fmt.Errorf("%s: no calls in notify*.c, of %d functions", module, len(ours))
	}
	return sites, nil
}

// TestFuzzAllocations fails what is allocated below each call in notify*.c, one at a time, while clients watch. A client
// is told, or told that it is not: by a status, or by the end of its connection.
func TestFuzzAllocations(t *testing.T) {
	if _, err := os.Stat(failslab); err != nil {
		t.Fatalf("a kernel with failslab is needed, see make fuzz-kernel: %v", err)
	}
	sites, err := callSites(*module)
	if err != nil {
		t.Fatal(err)
	}
	base, err := os.ReadFile("/sys/module/ksmbd/sections/.text")
	if err != nil {
		t.Fatal(err)
	}
	text, err := strconv.ParseUint(strings.TrimSpace(string(base)), 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	f := newFuzzer(t)
	for name, value := range map[string]uint64{
		"verbose": 0, "task-filter": 0, "ignore-gfp-wait": 0, "interval": 1, "space": 0, "stacktrace-depth": 32, "times": 0, "probability": 0,
	} {
		if err := setFailslab(name, value); err != nil {
			t.Fatal(err)
		}
	}
	defer setFailslab("probability", 0)
	fuzz.Rand(f.seed, 0).Shuffle(len(sites), func(i, j int) { sites[i], sites[j] = sites[j], sites[i] })
	failed := map[site]bool{}
	f.run(1, func(_ int, n uint64) error {
		if n >= uint64(len(sites)) {
			f.end = time.Now()
			return nil
		}
		f.messages.Add(1)
		s := sites[n]
		injected, err := f.failAt(s, text+s.after)
		if injected {
			failed[s] = true
		}
		if err != nil {
			return fmt.Errorf("%v: %w", s, err)
		}
		return nil
	})
	tried := min(int(f.messages.Load()), len(sites))
	var names []string
	for s := range failed {
		names = append(names, s.String())
	}
	slices.Sort(names)
	t.Logf("%d of %d calls tried; an allocation failed below %d:\n%s", tried, len(sites), len(names), strings.Join(names, "\n"))
	if tried == len(sites) && len(names) == 0 {
		t.Error("no allocation has failed")
	}
	f.healthy()
}

// failAt has the first allocation fail that is made below the call which returns to an address, while clients do all
// that the kernel part has work with.
func (f *fuzzer) failAt(s site, after uint64) (injected bool, err error) {
	for _, set := range []struct {
		name  string
		value uint64
	}{{"require-start", after}, {"require-end", after + 1}, {"times", 1}, {"probability", 100}} {
		if err := setFailslab(set.name, set.value); err != nil {
			return false, err
		}
	}
	workErr := f.work()
	left, err := os.ReadFile(failslab + "times")
	err = errors.Join(err, setFailslab("probability", 0))
	injected = strings.TrimSpace(string(left)) == "0"
	select {
	case <-server.notifyd.done:
		return injected, fmt.Errorf("the daemon ended: %w", server.notifyd.err)
	default:
	}
	return injected, errors.Join(err, workErr)
}

// work is what a client and the server do in one round. What the server refuses is refused; what it neither tells nor
// refuses is an error.
func (f *fuzzer) work() error {
	ctx, cancel := context.WithTimeout(f.Context(), long)
	defer cancel()
	dir := sharePath(lanes[1])
	if err := empty(dir); err != nil {
		return err
	}
	for _, sub := range []string{"d", "d/e", "gone"} {
		os.Mkdir(filepath.Join(dir, sub), 0o777)
		os.Chmod(filepath.Join(dir, sub), 0o777)
	}
	c, tree, err := connectTo(lanes[1])
	if err != nil {
		return nil // refused, or dropped: as good as told
	}
	defer c.Close()
	watch := func(name string, tree2 bool) (*smb2.File, *smb2.Call) {
		file, err := tree.Create(ctx, smb2.CreateParams{Name: name, Access: smb2.AccessMaximum, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory})
		if err != nil {
			return nil, nil
		}
		call, err := file.Notify(ctx, smb2.NotifyParams{Tree: tree2, Filter: smb2.FilterAll, Length: 4096})
		if err != nil {
			return nil, nil
		}
		call.Recv(ctx) // PENDING, or why not
		return file, call
	}
	// ends: an answer, or the end of the connection. Nothing is neither.
	ends := func(what string, call *smb2.Call) error {
		if call == nil || call.Answered() {
			return nil
		}
		if _, err := call.Recv(ctx); err != nil && c.Err() == nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	file, told := watch("", true)
	_, deleted := watch("gone", false)
	_, cancelled := watch("d", false)
	_, closed := watch(`d\e`, true)
	if cancelled != nil && !cancelled.Answered() {
		cancelled.Cancel(ctx)
	}
	os.Remove(filepath.Join(dir, "gone"))
	os.WriteFile(filepath.Join(dir, "d/e/f"), []byte("x"), 0o666)
	os.Rename(filepath.Join(dir, "d/e/f"), filepath.Join(dir, "d/g"))
	if made, err := tree.Create(ctx, smb2.CreateParams{Name: `d\s`, Access: smb2.AccessMaximum, Disposition: smb2.DispositionCreate, Options: smb2.OptionFile}); err == nil {
		made.Write(ctx, 0, []byte("x"))
		made.SetBasic(ctx, smb2.Basic{Attributes: smb2.AttributeHidden})
		made.SetEA(ctx, "a", "b")
		made.Rename(ctx, `d\t`, false)
		made.Close(ctx)
	}
	err = errors.Join(ends("a change below", told), ends("a directory removed", deleted), ends("CANCEL", cancelled), ends("a change in a directory", closed))
	if file != nil && err == nil {
		again, e := file.Notify(ctx, smb2.NotifyParams{Tree: true, Filter: smb2.FilterAll, Length: 4096})
		file.Close(ctx)
		if e == nil {
			if _, e := again.Final(ctx); e != nil && c.Err() == nil {
				err = fmt.Errorf("CLOSE: %w", e)
			}
		}
	}
	// What registers and asks is refused, and allocates before.
	family := dialFamily(f.T)
	defer family.Close()
	version := binary.NativeEndian.AppendUint32([]byte{8, 0, genl.ARegisterVersion, 0}, genl.ProtocolVersion)
	family.say(genl.CmdRegister, version)
	return err
}
