// SPDX-License-Identifier: GPL-2.0-or-later

//go:build guest

package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/test/fuzz"
	"ksmbd-notifyd/test/smb2"
)

var (
	soakFor     = flag.Duration("soak", time.Minute, "for how long TestSoak runs; each blow is dealt once at least")
	soakBlows   = flag.String("blows", ".*", "names of the blows that TestSoak deals, a regular expression")
	soakLoud    = flag.Bool("loud", false, "the daemon logs in TestSoak what it does")
	soakWatches = flag.Int("watches", 4, "how many watches TestSoak has on each filesystem")
)

// A model is a client that knows the names in its directory from what it is told, and lists when told to. A name of a
// directory is never used twice, see mutator: what a listing shows is then right, however far the records lag behind it.
type model struct {
	dir   string // as the server sees it
	tree  bool
	names map[string]bool
	enums int      // how often it was told to list
	log   []string // since the last check, the end of it
}

// note takes down what befell the client.
func (m *model) note(line string) {
	const most = 20000
	if m.log = append(m.log, line); len(m.log) == 2*most {
		m.log = append(m.log[:0], m.log[most:]...)
	}
}

// list takes in what is on the disk in and below a directory of the client's.
func (m *model) list(below string) {
	top := filepath.Join(m.dir, below)
	filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == top { // it went meanwhile, of which there will be a record
			return nil
		}
		rel, _ := filepath.Rel(m.dir, path)
		m.names[rel] = true
		if d.IsDir() && !m.tree {
			return filepath.SkipDir
		}
		return nil
	})
}

func (m *model) enum(why string) {
	m.note(why)
	m.names = make(map[string]bool)
	m.list("")
}

// apply takes in a record. What is in a directory that comes into sight is not told.
func (m *model) apply(a smb2.Action, name string) {
	m.note(fmt.Sprint(a, " ", name))
	switch a {
	case smb2.Added, smb2.RenamedNewName:
		m.names[name] = true
		if m.tree {
			m.list(name)
		}
	case smb2.Removed, smb2.RenamedOldName:
		delete(m.names, name)
		for n := range m.names {
			if strings.HasPrefix(n, name+"/") {
				delete(m.names, n)
			}
		}
	}
}

// differs says how the names are not those on the disk.
func (m *model) differs() (how []string) {
	truth := model{dir: m.dir, tree: m.tree, names: make(map[string]bool)}
	truth.list("")
	for n := range truth.names {
		if !m.names[n] {
			how = append(how, "missing "+n)
		}
	}
	for n := range m.names {
		if !truth.names[n] {
			how = append(how, "ghost "+n)
		}
	}
	slices.Sort(how)
	return how
}

// A ground is a directory of a share in which it storms.
type ground struct {
	share    string
	top      string   // as the server sees it
	roots    []string // where in it things are changed
	inherits bool     // nothing is to be listed anew over a graceful restart
}

// others are the filesystems that have a share of their own.
var others = []struct{ kind, share string }{{"ext4", "EXT4"}, {"btrfs", "BTRFS"}, {"overlay", "OVERLAY"}}

// prepare makes the grounds: on the filesystem of all shares, there with another mounted below, and on others.
func (s *storm) prepare() {
	s.Helper()
	add := func(share, dir string, inherits bool, roots ...string) {
		g := &ground{share, filepath.Join(dir, "w"), append(roots, ""), inherits}
		s.ok(os.MkdirAll(g.top, 0o777))
		s.ok(os.Chmod(g.top, 0o777))
		s.grounds = append(s.grounds, g)
		s.Cleanup(func() {
			if err := os.RemoveAll(g.top); err != nil {
				s.Error(err)
			}
		})
	}
	add("TEST", share, *fsType != "overlay")
	add(lanes[1], sharePath(lanes[1]), *fsType != "overlay", "m/sub")
	point := filepath.Join(sharePath(lanes[1]), "w/m")
	s.ok(os.MkdirAll(point, 0o777))
	s.mount(point, "-t", "tmpfs", "-o", "size=20m,mode=777", "none")
	s.ok(os.Mkdir(filepath.Join(point, "sub"), 0o777))
	s.ok(os.Chmod(filepath.Join(point, "sub"), 0o777))

	for _, o := range others {
		if _, err := os.Stat(kmemleak); err == nil && o.kind != "overlay" {
			s.Logf("the kernel of test/guest/debug.sh mounts no image of %s", o.kind)
			continue
		}
		point := filepath.Join(filepath.Dir(mount), o.kind)
		if o.kind == "overlay" {
			s.mount("/tmp/soak", "-t", "tmpfs", "-o", "size=100m,mode=755", "none")
			for _, d := range []string{"lower", "upper", "work"} {
				s.ok(os.Mkdir("/tmp/soak/"+d, 0o755))
			}
			s.mount(point, "-t", "overlay", "-o", "lowerdir=/tmp/soak/lower,upperdir=/tmp/soak/upper,workdir=/tmp/soak/work", "none")
		} else {
			image := filepath.Join("/tmp", o.kind+".img")
			s.ok(makeImage(o.kind, image))
			s.Cleanup(func() { os.Remove(image) })
			s.mount(point, "-t", o.kind, "-o", "loop", image)
		}
		dir := sharePath(o.share)
		s.ok(os.MkdirAll(dir, 0o777))
		s.ok(os.Chmod(dir, 0o777))
		add(o.share, dir, o.kind != "overlay")
	}
}

// mount mounts until the end of the test.
func (s *storm) mount(point string, args ...string) {
	s.Helper()
	s.ok(os.MkdirAll(point, 0o755))
	s.ok(command(append(append([]string{"mount"}, args...), point)...))
	s.Cleanup(func() {
		if err := until(long, func() error { return unix.Unmount(point, 0) }); err != nil {
			s.Errorf("unmounting %s: %v", point, err)
		}
	})
}

// A mutator changes things in a directory: by the server's own system calls, or through a mount of the share by a client. It
// takes the same few names for files again and again, and for each directory a new one.
type mutator struct {
	*rand.Rand
	root  string
	cifs  bool // of a mount of a client
	id    string
	dirs  []string // that it has made
	made  int
	steps atomic.Uint64
}

func (m *mutator) fresh() string {
	m.made++
	return fmt.Sprintf("d%s-%d", m.id, m.made)
}

// place is the root or one of its directories, and which of them.
func (m *mutator) place() (string, int) {
	i := m.IntN(2*len(m.dirs)+1) - len(m.dirs) - 1
	if i < 0 {
		return m.root, -1
	}
	return m.dirs[i], i
}

func (m *mutator) file() string {
	dir, _ := m.place()
	return filepath.Join(dir, fmt.Sprint("f", m.IntN(6)))
}

// moved takes down that a directory is elsewhere, or nowhere.
func (m *mutator) moved(from, to string) {
	var dirs []string
	for _, d := range m.dirs {
		if rest, ok := strings.CutPrefix(d+"/", from+"/"); ok {
			if to == "" {
				continue
			}
			d = filepath.Join(to, rest)
		}
		dirs = append(dirs, d)
	}
	m.dirs = dirs
}

// step does one thing. It may fail: what it takes may not be there, or belong to somebody else.
func (m *mutator) step(calm bool) {
	m.steps.Add(1)
	dir, i := m.place()
	switch k := m.IntN(40); {
	case k < 12:
		os.WriteFile(m.file(), nil, 0o666)
	case k < 20:
		unix.Unlink(m.file())
	case k < 24: // within a directory
		dir, _ := m.place()
		unix.Rename(filepath.Join(dir, fmt.Sprint("f", m.IntN(6))), filepath.Join(dir, fmt.Sprint("f", m.IntN(6))))
	case k < 28:
		unix.Rename(m.file(), m.file())
	case k < 30:
		if f, err := os.OpenFile(m.file(), os.O_WRONLY, 0); err == nil {
			f.WriteString("x")
			f.Close()
		}
	case k < 34 && len(m.dirs) < 6:
		d := filepath.Join(dir, m.fresh())
		if os.Mkdir(d, 0o777) == nil {
			os.Chmod(d, 0o777)
			m.dirs = append(m.dirs, d)
		}
	case k < 36 && i >= 0 && !calm: // see docs/guarantees.md, of directories that come and go unseen
		if os.RemoveAll(dir) == nil {
			m.moved(dir, "")
		}
	case i >= 0 && !calm:
		to, _ := m.place()
		if m.IntN(2) == 0 {
			to = filepath.Dir(dir)
		}
		to = filepath.Join(to, m.fresh())
		if !strings.HasPrefix(to, dir+"/") && unix.Rename(dir, to) == nil {
			m.moved(dir, to)
		}
	}
}

// A client has a connection, and listeners over it.
type client struct {
	o     smb2.Options
	mu    sync.Mutex // held while it connects
	conn  *smb2.Conn
	trees map[string]*smb2.Tree // by the share
}

// connect connects to a share, and to the server if there is no connection any more.
func (c *client) connect(ctx context.Context, share string) (*smb2.Tree, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil || c.conn.Err() != nil {
		conn, err := smb2.Dial(ctx, "127.0.0.1:445", c.o)
		if err != nil {
			return nil, err
		}
		c.conn, c.trees = conn, make(map[string]*smb2.Tree)
	}
	if t := c.trees[share]; t != nil {
		return t, nil
	}
	t, err := c.conn.TreeConnect(ctx, share)
	if err == nil {
		c.trees[share] = t
	}
	return t, err
}

// now returns the connection that it has.
func (c *client) now() *smb2.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}

func (c *client) close() {
	if conn := c.now(); conn != nil {
		conn.Close()
	}
}

// A listener is a client's handle of a directory that it watches.
type listener struct {
	model
	*ground
	*client
	p smb2.NotifyParams

	asking sync.Mutex // held to keep it from asking again

	mu   sync.Mutex    // guards the model and what follows
	mark string        // it is to be told of
	seen chan struct{} // closed when it was, or has listed since
	told uint64        // responses
	cuts int           // how often it was cut off
	err  error         // why it has ended
	ends bool          // its handle is being closed
	file *smb2.File
	done chan struct{} // closed when it has ended
}

// attach opens the directory anew.
func (l *listener) attach(ctx context.Context) error {
	tree, err := l.connect(ctx, l.share)
	if err == nil {
		l.mu.Lock()
		l.file, err = tree.Create(ctx, smb2.CreateParams{Name: "w", Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory})
		l.mu.Unlock()
	}
	if err != nil {
		l.close() // its session may have ended, and the connection not
	}
	return err
}

// run watches until its handle is closed. What cuts its connection off it may survive: it opens the directory anew.
func (l *listener) run(ctx context.Context, mayBeCut func() bool, armed func()) error {
	defer close(l.done)
	defer armed()
	for {
		err := l.watch(ctx, armed)
		if err == nil || !mayBeCut() {
			return err
		}
		l.mu.Lock()
		l.note(err.Error())
		l.cuts++
		l.mu.Unlock()
		// The handle is open still if the request alone was refused. A blow itself waits for ksmbd to end, and to start.
		l.file.Close(ctx)
		if err := until(4*long, func() error { return l.attach(ctx) }); err != nil {
			return fmt.Errorf("connecting again: %w", err)
		}
	}
}

// watch watches until the handle is closed, and lists when the first request pends.
func (l *listener) watch(ctx context.Context, armed func()) error {
	for fresh := true; ; fresh = false {
		l.asking.Lock()
		l.asking.Unlock()
		call, err := l.file.Notify(ctx, l.p)
		if err != nil {
			return err
		}
		r, err := call.Recv(ctx)
		if err == nil && r.Interim() {
			if fresh {
				l.mu.Lock()
				l.relist("armed")
				l.mu.Unlock()
				armed()
			}
			r, err = call.Recv(ctx)
		}
		if err != nil {
			return err
		}
		l.mu.Lock()
		ends := l.ends
		l.mu.Unlock()
		switch {
		case ends && (r.Status == smb2.StatusNotifyCleanup || r.Status == smb2.StatusFileClosed): // asked again after CLOSE
			return nil
		case r.Status != smb2.StatusSuccess && r.Status != smb2.StatusNotifyEnumDir:
			return fmt.Errorf("a request ends with %v", r.Status)
		}
		records, err := r.Records()
		if err != nil || r.Status == smb2.StatusSuccess && len(records) == 0 {
			return fmt.Errorf("told %d records: %w", len(records), err)
		}
		l.take(r.Status, records)
	}
}

// relist lists anew, the file by which it is to be seen that nothing is missing perhaps among it.
func (l *listener) relist(why string) {
	l.enum(why)
	if l.names[l.mark] {
		l.sawMark()
	}
}

// take takes in a response.
func (l *listener) take(status smb2.Status, records []smb2.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told++
	if status == smb2.StatusNotifyEnumDir {
		l.enums++
		l.relist("ENUM_DIR")
	}
	for _, r := range records {
		name := strings.ReplaceAll(r.Name, `\`, "/")
		l.apply(r.Action, name)
		if name == l.mark && r.Action == smb2.Added {
			l.sawMark()
		}
	}
}

func (l *listener) sawMark() {
	if l.mark != "" {
		l.mark = ""
		close(l.seen)
	}
}

// storm is random changes in some places, clients that watch there, and what befalls the server meanwhile.
type storm struct {
	*testing.T
	*rand.Rand
	ctx       context.Context
	seed      uint64
	grounds   []*ground
	mutators  []*mutator
	listeners []*listener
	clients   []*client
	smbclient *watcher // of the first ground, a client that others wrote
	itsModel  model
	gate      sync.RWMutex // held to keep the mutators still
	cut       atomic.Bool  // connections may be cut off now
	fast      atomic.Bool  // nobody pauses between changes
	marks     int
	checks    int
	silence   time.Duration // the longest
	first     footprint
	most      footprint
}

func (s *storm) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func newStorm(t *testing.T) *storm {
	begin(t)
	s := &storm{T: t, ctx: t.Context(), seed: *seed}
	if s.seed == 0 {
		s.seed = uint64(time.Now().UnixNano())
	}
	t.Logf("SEED=%d", s.seed)
	fmt.Printf("%s: SEED=%d\n", t.Name(), s.seed)
	mark(fmt.Sprintf("%s: SEED=%d", t.Name(), s.seed))
	s.Rand = fuzz.Rand(s.seed, 0)
	s.prepare()
	for _, g := range s.grounds {
		for _, root := range g.roots {
			s.mutate(filepath.Join(g.top, root), false)
		}
	}
	// It is another user's: when it connects again, the session that it says was its own may be somebody's of the ksmbd that
	// is there now, which ksmbd ends if that is of the same user.
	s.mount("/mnt", "-t", "cifs", "-o", "ip=127.0.0.1,username=user2,password=pass2,nosharesock,cache=none,actimeo=0,closetimeo=0", "//127.0.0.1/TEST")
	s.mutate("/mnt/w", true)
	return s
}

func (s *storm) mutate(root string, cifs bool) {
	n := len(s.mutators)
	s.mutators = append(s.mutators, &mutator{Rand: fuzz.Rand(s.seed, uint64(1+n)), root: root, cifs: cifs, id: fmt.Sprint(n)})
}

// whole is a buffer that takes all that is told between two checks.
const whole = 128 << 10

// listen starts so many listeners on each of the grounds: one on each for a client, or one for a client.
func (s *storm) listen(each int, alone bool) {
	s.Helper()
	var armed sync.WaitGroup
	user, password, _ := strings.Cut(user1, "%")
	for n := range each {
		o := smb2.Options{Dialect: smb2.Dialect311, User: user, Password: password, Credits: 64}
		p := smb2.NotifyParams{Filter: smb2.FilterNames, Length: []uint32{whole, 300, whole, 4096}[(n+n/4)%4], Tree: n%4 != 3}
		switch n % 4 {
		case 1:
			p.Filter = smb2.FilterAll
		case 2:
			o.Cipher = smb2.AES128GCM
		}
		for i, g := range s.grounds {
			if i == 0 || alone {
				s.clients = append(s.clients, &client{o: o})
			}
			c := s.clients[len(s.clients)-1]
			s.Cleanup(c.close)
			l := &listener{ground: g, client: c, model: model{dir: g.top, tree: p.Tree}, p: p, done: make(chan struct{})}
			s.ok(l.attach(s.ctx))
			s.listeners = append(s.listeners, l)
			armed.Add(1)
			go func() { l.err = l.run(s.ctx, s.cut.Load, sync.OnceFunc(armed.Done)) }()
		}
	}
	armed.Wait()
	s.startSmbclient()
	s.Cleanup(func() { s.smbclient.close() })
}

func (s *storm) startSmbclient() {
	s.Helper()
	w, err := watch("w", user1)
	s.ok(err)
	s.smbclient, s.itsModel = w, model{dir: s.grounds[0].top, tree: true}
	s.itsModel.enum("armed")
}

// burst has all mutators at work for a time, and the blow dealt at some moment of it.
func (s *storm) burst(d time.Duration, calm bool, blow func() error) {
	s.Helper()
	stop := s.work(calm)
	before := time.Duration(s.Int64N(int64(d)))
	time.Sleep(before)
	err := blow()
	time.Sleep(d - before)
	stop()
	s.ok(err)
}

// work has all mutators at work until stop is called.
func (s *storm) work(calm bool) (stop func()) {
	ctx, cancel := context.WithCancel(s.ctx)
	var working sync.WaitGroup
	for _, m := range s.mutators {
		if m.cifs && s.cut.Load() {
			continue // it waits for a server to come back
		}
		working.Go(func() {
			for ctx.Err() == nil {
				s.gate.RLock()
				m.step(calm)
				s.gate.RUnlock()
				pause := time.Duration(m.IntN(8)) * time.Millisecond
				if calm {
					pause += 10 * time.Millisecond
				}
				if !s.fast.Load() {
					time.Sleep(pause)
				}
			}
		})
	}
	return func() {
		cancel()
		working.Wait()
	}
}

// check waits until each client has been told of all that was done, and compares what it knows with the disk.
func (s *storm) check() {
	s.Helper()
	s.checks++
	s.marks++
	name := fmt.Sprint(markPrefix, s.marks)
	for _, l := range s.listeners {
		l.mu.Lock()
		l.mark, l.seen = name, make(chan struct{})
		l.mu.Unlock()
	}
	for _, g := range s.grounds {
		s.ok(os.WriteFile(filepath.Join(g.top, name), nil, 0o666))
	}
	deadline, start := time.After(2*long), time.Now()
	for _, l := range s.listeners {
		select {
		case <-l.seen:
		case <-l.done:
			s.fail(l, fmt.Errorf("ended: %w", l.err))
		case <-deadline:
			s.fail(l, errors.New("it was not told of a new file"))
		}
	}
	s.silence = max(s.silence, time.Since(start))
	for _, l := range s.listeners {
		l.mu.Lock()
		how := l.differs()
		if how == nil {
			l.log = nil
		}
		l.mu.Unlock()
		if how != nil {
			s.fail(l, fmt.Errorf("%d names diverge: %q", len(how), how))
		}
	}
	for _, g := range s.grounds {
		s.ok(os.Remove(filepath.Join(g.top, name)))
	}
	s.checkSmbclient()
	s.settled()
}

func (s *storm) checkSmbclient() {
	s.Helper()
	got, err := s.smbclient.told()
	if err != nil && s.cut.Load() { // it does not connect again
		s.smbclient.close()
		s.startSmbclient()
		return
	}
	s.ok(err)
	for _, r := range got {
		switch r.action {
		case enumDir:
			s.itsModel.enum("ENUM_DIR")
		case "added":
			s.itsModel.apply(smb2.Added, r.name)
		case "new name":
			s.itsModel.apply(smb2.RenamedNewName, r.name)
		case "removed":
			s.itsModel.apply(smb2.Removed, r.name)
		case "old name":
			s.itsModel.apply(smb2.RenamedOldName, r.name)
		}
	}
	if how := s.itsModel.differs(); how != nil {
		s.Fatalf("smbclient: %d names diverge: %q; it was told\n\t%s", len(how), how, strings.Join(s.itsModel.log, "\n\t"))
	}
	s.itsModel.log = nil
}

// fail says what a client was told since the last check, and ends the test.
func (s *storm) fail(l *listener, err error) {
	s.Helper()
	keepStacks()
	l.mu.Lock()
	defer l.mu.Unlock()
	out := filepath.Join(results, "soak-told.txt")
	os.WriteFile(out, []byte(strings.Join(l.log, "\n")), 0o644)
	s.Fatalf("SEED=%d, check %d: the client of %s, user %s, tree %v, buffer %d: %v; see %s", s.seed, s.checks, l.dir, l.o.User, l.tree, l.p.Length, err, out)
}

// enums is how often the clients were told to list where nothing needed it.
func (s *storm) enums() (n int) {
	for _, l := range s.listeners {
		l.mu.Lock()
		if l.inherits && l.p.Length == whole {
			n += l.enums
		}
		l.mu.Unlock()
	}
	return n
}

// end closes all handles, which ends each request that pends.
func (s *storm) end() {
	s.Helper()
	for _, l := range s.listeners {
		l.mu.Lock()
		l.ends = true
		l.mu.Unlock()
		s.ok(l.file.Close(s.ctx))
	}
	for _, l := range s.listeners {
		select {
		case <-l.done:
		case <-time.After(long):
			s.fail(l, errors.New("a request pends after its handle was closed"))
		}
		if l.err != nil {
			s.fail(l, l.err)
		}
	}
	for _, c := range s.clients {
		s.ok(c.conn.Err())
		c.close()
	}
	s.smbclient.close()
}

// A blow is what befalls the server.
type blow struct {
	name string
	kind int
	deal func(*storm) error
}

const (
	seen   = iota // clients may have to list anew
	unseen        // they need not
	cuts          // they lose their connections
)

func (s *storm) pause(ms int) { time.Sleep(time.Duration(s.IntN(ms)) * time.Millisecond) }

// limited has a daemon live for a while with a limit of fanotify's, which it has from its start. It must say what that led to.
func (s *storm) limited(name string, value int, says string, meanwhile func() error) error {
	file := filepath.Join("/proc/sys/fs/fanotify", name)
	before, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	said := func() (int, error) {
		log, err := os.ReadFile(filepath.Join(results, "notifyd.log"))
		return bytes.Count(log, []byte(says)), err
	}
	lines, err := said()
	again := func(value []byte) error {
		return errors.Join(os.WriteFile(file, value, 0), stopNotifyd(), startNotifyd())
	}
	err = errors.Join(err, again([]byte(fmt.Sprint(value))), until(long, func() error {
		err := meanwhile()
		n, err2 := said()
		if err = errors.Join(err, err2); err == nil && n == lines {
			err = fmt.Errorf("with %s = %d the daemon does not say that %s", name, value, says)
		}
		return err
	}))
	return errors.Join(err, again(before))
}

var blows []blow

func init() { // one has others dealt with it
	blows = []blow{
		{name: "kill", kind: seen, deal: func(s *storm) error {
			err := killNotifyd()
			s.pause(500)
			return errors.Join(err, startNotifyd())
		}},
		{name: "restart", kind: unseen, deal: func(s *storm) error {
			s.gate.Lock() // under a load that leaves no gap there is no handover, see leaveWithin
			held := true
			release := func() error {
				if held {
					s.gate.Unlock()
					held = false
				}
				return nil
			}
			defer release()
			return restartNotifyd(func() error {
				release()
				s.pause(500)
				return nil
			})
		}},
		{name: "upgrade", kind: unseen, deal: func(s *storm) error {
			err := otherVersion()
			return errors.Join(err, blowNamed("restart").deal(s))
		}},
		{name: "restart in the storm", kind: seen, deal: func(s *storm) error {
			return restartNotifyd(func() error { s.pause(300); return nil })
		}},
		{name: "stopped", kind: seen, deal: func(s *storm) error {
			daemon := server.notifyd.cmd.Process
			err := daemon.Signal(syscall.SIGSTOP)
			s.pause(4000)
			return errors.Join(err, daemon.Signal(syscall.SIGCONT))
		}},
		{name: "small queue", kind: seen, deal: func(s *storm) error {
			return s.limited("max_queued_events", 16, "the fanotify queue overflowed", func() error {
				s.fast.Store(true)
				defer s.fast.Store(false)
				daemon := server.notifyd.cmd.Process
				err := daemon.Signal(syscall.SIGSTOP)
				time.Sleep(300 * time.Millisecond)
				return errors.Join(err, daemon.Signal(syscall.SIGCONT))
			})
		}},
		{name: "overload", kind: seen, deal: func(s *storm) error { // by clients of which some do not ask, and some do not read, and a daemon that does neither
			s.fast.Store(true)
			defer s.fast.Store(false)
			for i, l := range s.listeners {
				if i/len(s.grounds)%4 == 1 {
					l.asking.Lock()
					defer l.asking.Unlock()
				}
			}
			for i, c := range s.clients {
				if i%4 == 2 {
					defer c.conn.Pause()()
				}
			}
			daemon := server.notifyd.cmd.Process
			s.pause(1000)
			err := daemon.Signal(syscall.SIGSTOP)
			s.pause(2000)
			err = errors.Join(err, daemon.Signal(syscall.SIGCONT))
			s.pause(1000)
			return err
		}},
		{name: "mounts", kind: seen, deal: func(s *storm) error {
			dir := filepath.Join(s.grounds[s.IntN(len(s.grounds))].top, "n")
			err := errors.Join(os.Mkdir(dir, 0o777), command("mount", "-t", "tmpfs", "none", dir))
			if err != nil {
				return err
			}
			s.pause(300)
			err = os.WriteFile(filepath.Join(dir, "f"), nil, 0o666)
			s.pause(300)
			return errors.Join(err, until(long, func() error { return unix.Unmount(dir, 0) }), os.Remove(dir))
		}},
		{name: "ksmbd.control -s", kind: cuts, deal: func(s *storm) error {
			err := stopMountd()
			s.pause(500)
			gone := until(long, func() error { // or one would be cut off later
				if n := connections(s.T); n > 0 {
					return fmt.Errorf("%d connections are left, listening: %v", n, listening() == nil)
				}
				return nil
			})
			return errors.Join(err, gone, startMountd())
		}},
		{name: "mountd killed", kind: cuts, deal: func(s *storm) error {
			// Its worker too, as systemd does: that would go on, and have ksmbd refuse the next one's.
			err := syscall.Kill(-server.mountd.cmd.Process.Pid, syscall.SIGKILL)
			server.mountd.wait()
			s.pause(500)
			return errors.Join(err, startMountd())
		}},
		{name: "module", kind: cuts, deal: func(s *storm) error {
			err := errors.Join(stopMountd(), unloadModule())
			s.pause(500)
			return errors.Join(err, loadModule(), startMountd())
		}},
		{name: "too many files", kind: cuts, deal: func(s *storm) error {
			pid := server.notifyd.cmd.Process.Pid
			var before unix.Rlimit
			if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
				return err
			}
			few := before
			few.Cur = uint64(s.footprint().files - 2 + s.IntN(6))
			if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &few, nil); err != nil {
				return err
			}
			err := blowNamed("connections").deal(s)
			s.pause(1500)
			err = errors.Join(err, blowNamed("mounts").deal(s))
			s.pause(1500)
			err = errors.Join(err, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil))
			time.Sleep(12 * time.Second) // what could not be marked is tried again after 10 s
			return err
		}},
		{name: "few groups", kind: cuts, deal: func(s *storm) error {
			filesystems := len(s.grounds) - 1 // two are on one
			return s.limited("max_user_groups", 1+s.IntN(filesystems-1), "there can be no more fanotify groups", func() error { return nil })
		}},
		{name: "connections", kind: cuts, deal: func(s *storm) error {
			for _, c := range s.clients {
				if s.IntN(3) > 0 {
					continue
				}
				conn := c.now()
				raw := conn.Raw()
				// A frame that ends too early.
				raw.WriteBytes(s.ctx, append([]byte{0, 0, 1, 0}, make([]byte, s.IntN(200))...))
				if s.IntN(2) == 0 {
					raw.Close()
				} else {
					conn.Reset()
				}
			}
			return nil
		}},
		{name: "channels", kind: seen, deal: func(s *storm) error {
			for _, i := range s.Perm(len(s.listeners))[:min(8, len(s.listeners))] {
				l := s.listeners[i]
				second, err := l.conn.Bind(s.ctx)
				if err != nil {
					return err
				}
				file, err := l.file.Tree.Create(s.ctx, smb2.CreateParams{Name: "w", Access: wireRead, Disposition: smb2.DispositionOpen, Options: smb2.OptionDirectory})
				if err == nil {
					_, err = file.On(second).Notify(s.ctx, l.p)
				}
				if err != nil {
					return err
				}
				s.pause(20)
				second.Reset()
				if err := file.Close(s.ctx); err != nil {
					return err
				}
			}
			return nil
		}},
		{name: "sessions", kind: seen, deal: func(s *storm) error { // in other directories
			f := &fuzzer{T: s.T, seed: s.Uint64()}
			var wg sync.WaitGroup
			errs := make([]error, 3)
			for i := range errs {
				wg.Go(func() { errs[i] = f.race(uint64(i)) })
			}
			wg.Wait()
			return errors.Join(append(errs, empty(sharePath(lanes[0])))...)
		}},
	}
}

// otherVersion puts a daemon of another version in the place of the one that is installed: the same program under another name.
func otherVersion() error {
	said, err := exec.Command(*daemon, "--version").Output()
	if err != nil {
		return err
	}
	before := bytes.TrimSpace(bytes.TrimPrefix(said, []byte("ksmbd-notifyd version ")))
	after := slices.Clone(before)
	after[len(after)-1] ^= 1
	program, err := os.ReadFile(*daemon)
	if err != nil {
		return err
	}
	next := *daemon + ".next"
	if err := errors.Join(os.WriteFile(next, bytes.ReplaceAll(program, before, after), 0o755), os.Rename(next, *daemon)); err != nil {
		return err
	}
	if now, err := exec.Command(*daemon, "--version").Output(); err != nil || bytes.Equal(now, said) {
		return fmt.Errorf("the version after an upgrade: %q, %v", now, err)
	}
	return nil
}

func blowNamed(name string) blow {
	return blows[slices.IndexFunc(blows, func(b blow) bool { return b.name == name })]
}

// quieten has the daemon log little until the end of the test: else its log is what is stored most.
func quieten(t *testing.T) {
	t.Helper()
	server.quiet = !*soakLoud
	t.Cleanup(func() {
		server.quiet = false
		if err := errors.Join(stopNotifyd(), startNotifyd()); err != nil {
			t.Error(err)
		}
	})
	if err := stopNotifyd(); err != nil {
		t.Fatal(err)
	}
}

// TestSoak: whatever befalls the server while much is changed there, each client ends with the names that are on the disk, by
// what it is told alone. Each request is answered, and once.
func TestSoak(t *testing.T) {
	quieten(t)
	s := newStorm(t)
	s.listen(*soakWatches, false)
	chosen, err := regexp.Compile("^(" + *soakBlows + ")$")
	s.ok(err)
	dealt := make(map[string]int)
	start, spoken := time.Now(), time.Now()
	for deck := 0; deck == 0 || time.Since(start) < *soakFor; deck++ {
		for _, i := range s.Perm(len(blows)) {
			b := blows[i]
			if !chosen.MatchString(b.name) || deck > 0 && time.Since(start) > *soakFor {
				continue
			}
			dealt[b.name]++
			mark(fmt.Sprintf("%s: %s", t.Name(), b.name))
			s.burst(time.Duration(100+s.IntN(400))*time.Millisecond, false, func() error { return nil })
			s.check()
			before := s.enums()
			s.cut.Store(b.kind == cuts)
			s.burst(time.Duration(100+s.IntN(900))*time.Millisecond, b.kind == unseen, func() error { return b.deal(s) })
			s.check()
			s.cut.Store(false)
			if n := s.enums() - before; b.kind == unseen && n > 0 {
				s.Fatalf("SEED=%d, check %d: over a %s, clients were told to list anew %d times", s.seed, s.checks, b.name, n)
			}
			if time.Since(spoken) > 10*time.Second {
				spoken = time.Now()
				fmt.Printf("%s: %v, %s\n", t.Name(), time.Since(start).Round(time.Second), s.sum(dealt))
			}
		}
	}
	t.Logf("%v, %s", time.Since(start).Round(time.Second), s.sum(dealt))
	s.end()
}

// footprint is what the daemon and the module have.
type footprint struct {
	files, references int // of the daemon; to the module
	memory            int // of the daemon, KiB
}

func (s *storm) footprint() (f footprint) {
	s.Helper()
	memory, _, err := daemonMemory()
	s.ok(err)
	f.memory = memory
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", server.notifyd.cmd.Process.Pid))
	s.ok(err)
	f.files = len(files)
	refs, err := os.ReadFile("/sys/module/ksmbd/refcnt")
	s.ok(err)
	fmt.Sscan(string(refs), &f.references)
	return f
}

// settled waits for the daemon and the module to have no more than at first: what clients have open is the same.
func (s *storm) settled() {
	s.Helper()
	s.ok(until(long, func() error {
		now := s.footprint()
		if s.most.memory = max(s.most.memory, now.memory); s.first.files == 0 {
			s.first = now
		}
		if now.memory > maxDaemon {
			return fmt.Errorf("the daemon has %d KiB, of %d", now.memory, maxDaemon)
		}
		if now.files > s.first.files || now.references > s.first.references {
			return fmt.Errorf("the daemon has %d files, had %d; the module %d references, had %d", now.files, s.first.files, now.references, s.first.references)
		}
		return nil
	}))
}

func (s *storm) sum(dealt map[string]int) string {
	var steps, enums, told uint64
	for _, m := range s.mutators {
		steps += m.steps.Load()
	}
	for _, l := range s.listeners {
		l.mu.Lock()
		enums, told = enums+uint64(l.enums), told+l.told
		l.mu.Unlock()
	}
	return fmt.Sprintf("%d steps, %d responses, %d of them ENUM_DIR, %d checks, silent for up to %v; daemon %d KiB; %v",
		steps, told, enums, s.checks, s.silence.Round(time.Millisecond), s.most.memory, dealt)
}
