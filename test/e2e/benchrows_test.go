// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/test/smb2"
)

// What benchSMB measures.

// benchConn is a connection to the server at hand.
type benchConn struct {
	*smb2.Conn
	tree *smb2.Tree
}

func (b *benchRun) connect(ctx context.Context) (*benchConn, error) {
	name, password, _ := strings.Cut(user1, "%")
	c, err := smb2.Dial(ctx, benchServers[b.server].addr, smb2.Options{Dialect: smb2.Dialect311, User: name, Password: password, Credits: 512})
	if err != nil {
		return nil, err
	}
	tree, err := c.TreeConnect(ctx, "TEST")
	if err != nil {
		c.Close()
		return nil, err
	}
	return &benchConn{c, tree}, nil
}

// connectAll opens so many connections; what is returned last closes them.
func (b *benchRun) connectAll(ctx context.Context, n int) (conns []*benchConn, end func(), err error) {
	end = func() {
		for _, c := range conns {
			c.Close()
		}
	}
	for range n {
		c, err := b.connect(ctx)
		if err != nil {
			end()
			return nil, nil, err
		}
		conns = append(conns, c)
	}
	return conns, end, nil
}

func (c *benchConn) open(ctx context.Context, name string) (*smb2.File, error) {
	return c.tree.Create(ctx, smb2.CreateParams{Name: name, Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory})
}

func (c *benchConn) create(ctx context.Context, name string) (*smb2.File, error) {
	return c.tree.Create(ctx, smb2.CreateParams{Name: name, Access: smb2.AccessMaximum, Disposition: smb2.DispositionCreate, Options: smb2.OptionFile})
}

func notifyFiles(tree bool) smb2.NotifyParams {
	return smb2.NotifyParams{Filter: smb2.FilterFileName, Length: 4096, Tree: tree}
}

// park sends a NOTIFY and returns how long its PENDING took. What is told at once, smbd does that now and then, is not counted.
func park(ctx context.Context, f *smb2.File, p smb2.NotifyParams) (*smb2.Call, time.Duration, error) {
	for {
		start := time.Now()
		call, err := f.Notify(ctx, p)
		if err != nil {
			return nil, 0, err
		}
		switch r, err := call.Recv(ctx); {
		case err != nil:
			return nil, 0, err
		case r.Interim():
			return call, time.Since(start), nil
		case r.Status != smb2.StatusSuccess:
			return nil, 0, fmt.Errorf("%v, want PENDING", r.Status)
		}
	}
}

// armed is how long a change comes after PENDING: smbd's notify daemon hears of a request only after that.
const armed = 20 * time.Millisecond

// recordsOf waits for the records of a NOTIFY.
func recordsOf(ctx context.Context, call *smb2.Call) error {
	r, err := call.Recv(ctx)
	if err == nil && r.Status != smb2.StatusSuccess {
		err = fmt.Errorf("told %v", r.Status)
	}
	return err
}

func touch(name string) error {
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o666)
	if err != nil {
		return &os.PathError{Op: "create", Path: name, Err: err}
	}
	return unix.Close(fd)
}

// floors are what no server can be faster than: a change read from a fanotify queue, and a packet from a connection.
func (b *benchRun) floors(context.Context) error {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_REPORT_DFID_NAME|unix.FAN_CLOEXEC, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_CREATE|unix.FAN_EVENT_ON_CHILD, unix.AT_FDCWD, b.dir); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	defer client.Close()
	server, err := listener.Accept()
	if err != nil {
		return err
	}
	defer server.Close()
	var changes, packets []float64
	buf := make([]byte, 4096)
	for i := range b.sizes.samples {
		at := make(chan time.Time)
		go func() {
			unix.Read(fd, buf)
			at <- time.Now()
		}()
		time.Sleep(4 * time.Millisecond)
		start := time.Now()
		if err := touch(filepath.Join(b.dir, strconv.Itoa(i))); err != nil {
			return err
		}
		changes = append(changes, ms((<-at).Sub(start)))
		go func() {
			server.Read(buf)
			at <- time.Now()
		}()
		time.Sleep(4 * time.Millisecond)
		start = time.Now()
		if _, err := client.Write(buf[:100]); err != nil {
			return err
		}
		packets = append(packets, ms((<-at).Sub(start)))
	}
	b.add("floor: local create → fanotify read", "ms", changes...)
	b.add("floor: TCP write → read", "ms", packets...)
	return nil
}

// oneClient: a client that waits, is told, and asks again.
func (b *benchRun) oneClient(ctx context.Context) error {
	c, err := b.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	f, err := c.open(ctx, "bench")
	if err != nil {
		return err
	}
	var tolds, rearmed, fresh, cancelled []float64
	for i := range b.sizes.samples {
		call, pending, err := park(ctx, f, notifyFiles(false))
		if err != nil {
			return err
		}
		if i > 0 {
			rearmed = append(rearmed, ms(pending))
		}
		time.Sleep(armed)
		start := time.Now()
		if err := touch(filepath.Join(b.dir, "local"+strconv.Itoa(i))); err != nil {
			return err
		}
		if err := recordsOf(ctx, call); err != nil {
			return err
		}
		tolds = append(tolds, ms(time.Since(start)))

		other, err := c.open(ctx, "bench")
		if err != nil {
			return err
		}
		start = time.Now()
		if call, pending, err = park(ctx, other, notifyFiles(false)); err != nil {
			return err
		}
		fresh = append(fresh, ms(pending))
		if err := call.Cancel(ctx); err != nil {
			return err
		}
		if _, err := call.Recv(ctx); err != nil {
			return err
		}
		cancelled = append(cancelled, ms(time.Since(start)))
		if err := other.Close(ctx); err != nil {
			return err
		}
	}
	b.add("local create → told, idle", "ms", tolds...)
	b.add("request → PENDING, re-armed", "ms", rearmed...)
	b.add("request → PENDING, fresh handle", "ms", fresh...)
	b.add("notify and cancel, round trip", "ms", cancelled...)
	return nil
}

// underLoad: a watch tree, while files come and go elsewhere on the filesystem.
func (b *benchRun) underLoad(ctx context.Context) error {
	elsewhere := filepath.Join(mount, "elsewhere")
	if err := os.MkdirAll(elsewhere, 0o777); err != nil {
		return err
	}
	defer os.RemoveAll(elsewhere)
	c, err := b.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	f, err := c.open(ctx, "bench")
	if err != nil {
		return err
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			name := filepath.Join(elsewhere, strconv.Itoa(i))
			touch(name)
			os.Remove(name)
		}
	}()
	defer func() { close(stop); <-done }()
	var tolds []float64
	for i := range b.sizes.samples {
		call, _, err := park(ctx, f, notifyFiles(true))
		if err != nil {
			return err
		}
		time.Sleep(armed)
		start := time.Now()
		if err := touch(filepath.Join(b.dir, "load"+strconv.Itoa(i))); err != nil {
			return err
		}
		if err := recordsOf(ctx, call); err != nil {
			return err
		}
		tolds = append(tolds, ms(time.Since(start)))
	}
	b.add("the same, watch tree, 1,000 creates/s elsewhere", "ms", tolds...)
	return nil
}

// smbChange: what another client creates.
func (b *benchRun) smbChange(ctx context.Context) error {
	conns, end, err := b.connectAll(ctx, 2)
	if err != nil {
		return err
	}
	defer end()
	f, err := conns[0].open(ctx, "bench")
	if err != nil {
		return err
	}
	var tolds, after []float64
	for i := range b.sizes.samples {
		call, _, err := park(ctx, f, notifyFiles(false))
		if err != nil {
			return err
		}
		time.Sleep(armed)
		var at time.Time
		ended := make(chan error, 1)
		go func() {
			err := recordsOf(ctx, call)
			at = time.Now()
			ended <- err
		}()
		start := time.Now()
		created, err := conns[1].create(ctx, `bench\smb`+strconv.Itoa(i))
		if err != nil {
			return err
		}
		answered := time.Now()
		if err := <-ended; err != nil {
			return err
		}
		tolds = append(tolds, ms(at.Sub(start)))
		after = append(after, max(0.01, ms(at.Sub(answered)))) // it may be told before
		if err := created.Close(ctx); err != nil {
			return err
		}
	}
	b.add("SMB create → told", "ms", tolds...)
	b.add("create's response → told", "ms", after...)
	return nil
}

// many opens so many handles on as many connections and has a request pend on each.
func (b *benchRun) many(ctx context.Context, handles, connections int, name func(int) string) (calls []*smb2.Call, files []*smb2.File, pending time.Duration, end func(), err error) {
	conns, closeAll, err := b.connectAll(ctx, connections)
	if err != nil {
		return nil, nil, 0, nil, err
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	for i := range handles {
		f, err := conns[i%connections].open(ctx, name(i))
		if err != nil {
			return nil, nil, 0, nil, err
		}
		files = append(files, f)
	}
	start := time.Now()
	window := 100 * connections // no more than that are unanswered: a connection has 512 credits
	for i := 0; i < handles; i += window {
		part := files[i:min(i+window, handles)]
		for _, f := range part {
			call, err := f.Notify(ctx, notifyFiles(false))
			if err != nil {
				return nil, nil, 0, nil, err
			}
			calls = append(calls, call)
		}
		for j := range part {
			r, err := calls[i+j].Recv(ctx)
			if err == nil && !r.Interim() {
				err = fmt.Errorf("%v came first, want PENDING", r.Status)
			}
			if err != nil {
				return nil, nil, 0, nil, err
			}
		}
	}
	return calls, files, time.Since(start), closeAll, nil
}

// tellAll makes a change and returns when the first and the last were told.
func tellAll(ctx context.Context, calls []*smb2.Call, change func() error) (first, last time.Duration, err error) {
	var wg sync.WaitGroup
	at, errs := make([]time.Duration, len(calls)), make([]error, len(calls))
	var start time.Time
	for i, call := range calls {
		wg.Go(func() {
			errs[i] = recordsOf(ctx, call)
			at[i] = time.Since(start)
		})
	}
	time.Sleep(50 * time.Millisecond)
	start = time.Now()
	errChange := change()
	wg.Wait()
	first = math.MaxInt64
	for _, t := range at {
		first, last = min(first, t), max(last, t)
	}
	return first, last, cmp.Or(append(errs, errChange)...)
}

func (b *benchRun) watchers(ctx context.Context) error {
	calls, _, _, end, err := b.many(ctx, b.sizes.watchers, b.sizes.watchers, func(int) string { return "bench" })
	if err != nil {
		return err
	}
	defer end()
	_, last, err := tellAll(ctx, calls, func() error { return touch(filepath.Join(b.dir, "watchers")) })
	if err == nil {
		b.add(fmt.Sprintf("%d watchers on as many connections, last told", b.sizes.watchers), "ms", ms(last))
	}
	return err
}

func (b *benchRun) fewConnections(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	calls, _, _, end, err := b.many(ctx, b.sizes.few, 4, func(int) string { return "bench" })
	if err != nil {
		return err
	}
	defer end()
	first, last, err := tellAll(ctx, calls, func() error { return touch(filepath.Join(b.dir, "few")) })
	if err == nil {
		b.add(fmt.Sprintf("%d watchers on 4 connections, first told", b.sizes.few), "ms", ms(first))
		b.add(fmt.Sprintf("%d watchers on 4 connections, last told", b.sizes.few), "ms", ms(last))
	}
	return err
}

// available is the memory that the machine has left, in kB.
func available() float64 { return meminfo("MemAvailable") }

// meminfo is a field of /proc/meminfo, in kB.
func meminfo(field string) float64 {
	text, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kb, _ := strconv.Atoi(strings.Fields(rest)[0])
			return float64(kb)
		}
	}
	return math.NaN()
}

// watches: as many directories, each watched.
func (b *benchRun) watches(ctx context.Context) error {
	n := b.sizes.watches
	for i := range n {
		dir := filepath.Join(b.dir, "d"+strconv.Itoa(i))
		if err := errors.Join(os.Mkdir(dir, 0o777), os.Chmod(dir, 0o777)); err != nil {
			return err
		}
	}
	before := available()
	_, files, pending, end, err := b.many(ctx, n, (n+399)/400, func(i int) string { return `bench\d` + strconv.Itoa(i) })
	if err != nil {
		return err
	}
	defer end()
	b.add(fmt.Sprintf("%d watches, all PENDING", n), "ms", ms(pending))
	b.add("memory that the machine has less, a watch", "kB", (before-available())/float64(n))
	const idle = 3 * time.Second
	busy := cpu()
	time.Sleep(idle)
	b.add(fmt.Sprintf("idle with %d watches: CPU a second", n), "ms", (cpu()-busy)/idle.Seconds())
	start := time.Now()
	for _, f := range files {
		if err := f.Close(ctx); err != nil {
			return err
		}
	}
	b.add(fmt.Sprintf("%d watches, all closed", n), "ms", ms(time.Since(start)))
	return nil
}

// cpu is the time that the machine has spent on all but this process, in ms.
func cpu() float64 {
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(text), "\n")
	var ticks float64 // user nice system idle iowait irq softirq; 10 ms each
	for i, f := range strings.Fields(line)[1:8] {
		if n, err := strconv.Atoi(f); err == nil && i != 3 && i != 4 {
			ticks += float64(n)
		}
	}
	var own unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &own)
	return ticks*10 - float64(own.Utime.Nano()+own.Stime.Nano())/1e6
}

// follower is a client that asks again at once.
type follower struct {
	mu      sync.Mutex
	records int
	lists   int // ENUM_DIR
	last    time.Time
}

func (f *follower) run(ctx context.Context, file *smb2.File, p smb2.NotifyParams) error {
	for {
		call, err := file.Notify(ctx, p)
		if err != nil {
			return err
		}
		r, err := call.Recv(ctx)
		if err == nil && r.Interim() {
			r, err = call.Recv(ctx)
		}
		if err != nil {
			return err
		}
		f.mu.Lock()
		if r.Status == smb2.StatusNotifyEnumDir {
			f.lists++
		} else if records, err := r.Records(); err == nil {
			f.records += len(records)
		}
		f.last = time.Now()
		f.mu.Unlock()
	}
}

func (f *follower) seen() (records, lists int, last time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.records, f.lists, f.last
}

// follow has n clients follow the directory; what is returned stops them.
func (b *benchRun) follow(ctx context.Context, n int, tree bool) (followers []*follower, stop func(), err error) {
	conns, end, err := b.connectAll(ctx, n)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	stop = func() {
		cancel()
		end()
		wg.Wait()
	}
	for _, c := range conns {
		file, err := c.open(ctx, "bench")
		if err != nil {
			stop()
			return nil, nil, err
		}
		f := new(follower)
		followers = append(followers, f)
		wg.Go(func() { f.run(ctx, file, notifyFiles(tree)) })
	}
	time.Sleep(200 * time.Millisecond)
	return followers, stop, nil
}

// settled waits until the followers are told nothing more for a while.
func settled(ctx context.Context, followers []*follower, want int) (records, lists int, last time.Time) {
	for quiet := time.Now(); ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		was := records
		records, lists, last = 0, 0, time.Time{}
		for _, f := range followers {
			n, l, t := f.seen()
			records, lists = records+n, lists+l
			if t.After(last) {
				last = t
			}
		}
		if records >= want || records == was && time.Since(quiet) > 4*time.Second {
			return records, lists, last
		}
		if records != was {
			quiet = time.Now()
		}
	}
	return records, lists, last
}

// calm waits until the followers are told no more, or for ten seconds: what was slow in telling is not to slow down what
// comes next.
func calm(ctx context.Context, followers []*follower) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	settled(ctx, followers, math.MaxInt)
}

// burst: files are created as fast as can be, and a client with a buffer of 4 KiB asks again at once.
func (b *benchRun) burst(ctx context.Context) error {
	n := 5 * b.sizes.creates
	followers, stop, err := b.follow(ctx, 1, false)
	if err != nil {
		return err
	}
	defer stop()
	busy := cpu()
	if err := b.createFiles(b.dir, n, 0, false); err != nil {
		return err
	}
	done := time.Now()
	records, lists, last := settled(ctx, followers, n)
	spent := cpu() - busy
	b.add(fmt.Sprintf("%d creates at once: not told by name", n), "files", float64(n-records))
	b.add(fmt.Sprintf("%d creates at once: last told after the last", n), "ms", max(0.01, ms(last.Sub(done))))
	b.add("server CPU a create, one watcher, as fast as can be", "µs", spent*1000/float64(n))
	if records < n && lists == 0 {
		return fmt.Errorf("%d of %d creates told, and no ENUM_DIR", records, n)
	}
	return nil
}

// createFiles creates files, and removes each if asked to; with a pause between them.
func (b *benchRun) createFiles(dir string, n int, pause time.Duration, remove bool) error {
	for i := range n {
		name := filepath.Join(dir, "f"+strconv.Itoa(i))
		if err := touch(name); err != nil {
			return err
		}
		if remove {
			if err := unix.Unlink(name); err != nil {
				return err
			}
		}
		if pause > 0 {
			time.Sleep(pause)
		}
	}
	return nil
}

// serverCPU: what a record costs the machine, but for this client.
func (b *benchRun) serverCPU(ctx context.Context) error {
	for _, watchers := range []int{1, b.sizes.watchers} {
		n, pause := 1000, 2*time.Millisecond
		if watchers > 1 {
			n, pause = 100, 20*time.Millisecond
		}
		dir := filepath.Join(b.dir, strconv.Itoa(watchers))
		if err := errors.Join(os.Mkdir(dir, 0o777), os.Chmod(dir, 0o777)); err != nil {
			return err
		}
		followers, stop, err := b.follow(ctx, watchers, true)
		if err != nil {
			return err
		}
		busy := cpu()
		err = b.createFiles(dir, n, pause, false)
		records, _, _ := settled(ctx, followers, n*watchers)
		spent := cpu() - busy
		stop()
		if err == nil && records == 0 { // smbd hears of no change below a directory that is not its own
			err = fmt.Errorf("%d changes in a watch tree, and none told", n)
		}
		if err != nil {
			return err
		}
		name := fmt.Sprintf("server CPU a record, %d watchers", watchers)
		if watchers == 1 {
			name = "server CPU a record, one watcher, 500/s"
		}
		b.add(name, "µs", spent*1000/float64(records))
	}
	return nil
}

// localCreation: what local programs pay for being watched.
func (b *benchRun) localCreation(ctx context.Context) error {
	return b.slowed(ctx, "local file creation and removal", func() error { return b.createFiles(b.dir, b.sizes.creates, 0, true) })
}

// smbCreation: what four clients that create files pay for being watched.
func (b *benchRun) smbCreation(ctx context.Context) error {
	conns, end, err := b.connectAll(ctx, 4)
	if err != nil {
		return err
	}
	defer end()
	round := 0
	return b.slowed(ctx, "SMB file creation by 4", func() error {
		var wg sync.WaitGroup
		errs := make([]error, len(conns))
		round++
		for i, c := range conns {
			wg.Go(func() {
				for j := range b.sizes.files {
					f, err := c.create(ctx, fmt.Sprintf(`bench\c%d-%d-%d`, round, i, j))
					if err == nil {
						err = f.Close(ctx)
					}
					if err != nil {
						errs[i] = err
						return
					}
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	})
}

// slowed measures how much longer work takes when one client watches its directory, and when many do.
func (b *benchRun) slowed(ctx context.Context, name string, work func() error) error {
	timed := func() (time.Duration, error) {
		start := time.Now()
		err := work()
		return time.Since(start), err
	}
	// Both servers look through a directory for a name that is not there: it begins as empty each time.
	empty := func() error {
		files, err := os.ReadDir(b.dir)
		for _, f := range files {
			err = errors.Join(err, os.RemoveAll(filepath.Join(b.dir, f.Name())))
		}
		return err
	}
	for _, watchers := range []int{1, b.sizes.watchers} {
		alone, err := timed()
		if err = errors.Join(err, empty()); err != nil {
			return err
		}
		followers, stop, err := b.follow(ctx, watchers, true)
		if err != nil {
			return err
		}
		watched, err := timed()
		calm(ctx, followers)
		stop()
		if err = errors.Join(err, empty()); err != nil {
			return err
		}
		b.add(fmt.Sprintf("%s, slowed by %d watchers", name, watchers), "×", watched.Seconds()/alone.Seconds())
	}
	return nil
}
