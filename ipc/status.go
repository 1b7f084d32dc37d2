// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"ksmbd-notifyd/genl"
)

// Status is what a Daemon does. Its JSON is described in ksmbd-notifyd(8).
type Status struct {
	Serving      bool          `json:"serving"`           // registered with ksmbd
	Since        time.Time     `json:"since"`             // when that became so
	Waiting      string        `json:"waiting,omitempty"` // for what, when not Serving
	Module       string        `json:"module,omitempty"`  // the module's release
	Policy       Policy        `json:"policy"`
	Open         Open          `json:"open"`
	Total        Total         `json:"total"`
	LastOverflow *Loss         `json:"last_overflow,omitempty"`
	Incidents    []Incident    `json:"incidents,omitempty"` // the last of them, oldest first
	Shares       []ShareStatus `json:"shares,omitempty"`    // that had watches, by name
	Filesystems  []Filesystem  `json:"filesystems,omitempty"`
	Watches      []WatchStatus `json:"watches,omitempty"` // oldest first
}

// Open is what there is now.
type Open struct {
	Watches     int `json:"watches"`
	Trees       int `json:"trees"` // of the watches
	Requests    int `json:"requests"`
	QueuedBytes int `json:"queued_bytes"` // as records take in clients' buffers
}

// Total is what was done since the daemon started.
type Total struct {
	Watches        uint64 `json:"watches"`
	Refused        uint64 `json:"refused"` // watches that could not be armed, though they are to be
	Requests       uint64 `json:"requests"`
	Responses      uint64 `json:"responses"` // with records or one of the statuses that follow
	EnumDirs       uint64 `json:"enum_dirs"`
	DeletePendings uint64 `json:"delete_pendings"`
	Records        uint64 `json:"records"`
	Overflows      uint64 `json:"overflows"`       // how often a watch lost records
	QueueOverflows uint64 `json:"queue_overflows"` // how often the fanotify queue did
}

// A Loss is a watch's overflow.
type Loss struct {
	Time      time.Time `json:"time"`
	Directory string    `json:"directory"`
	Reason    string    `json:"reason"`
}

// Kinds of Incident.
const (
	Overflow      = "overflow"       // a watch lost records
	QueueOverflow = "queue-overflow" // the fanotify queue did
	Refusal       = "refused"        // a watch was not armed
	Stuck         = "stuck"          // a filesystem did not answer
)

// An Incident is what an administrator may want to know of afterwards. The same
// one again, with no other in between, only counts.
type Incident struct {
	First     time.Time `json:"first"`
	Last      time.Time `json:"last"`
	Count     uint64    `json:"count"`
	Kind      string    `json:"kind"`
	Directory string    `json:"directory,omitempty"`
	User      string    `json:"user,omitempty"`
	Share     string    `json:"share,omitempty"`
	Reason    string    `json:"reason"`
}

// ShareStatus is what was done for the clients of a share.
type ShareStatus struct {
	Share     string  `json:"share"`
	Responses uint64  `json:"responses"`
	EnumDirs  uint64  `json:"enum_dirs"`
	Records   uint64  `json:"records"`
	Overflows uint64  `json:"overflows"`
	Latency   Latency `json:"latency"`
}

// LatencyBounds are the upper bounds of a Latency's counts.
var LatencyBounds = [...]time.Duration{
	100 * time.Microsecond, 300 * time.Microsecond, time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond,
	100 * time.Millisecond, 300 * time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second, time.Minute,
}

// Latency counts the answers with records by how long the oldest record took: from
// when fanotify had it to be read, which is within 2 ms of the change, until ksmbd
// took the answer. It includes how long the client took to ask again.
type Latency struct {
	Counts  [len(LatencyBounds) + 1]uint64 `json:"counts"` // not cumulative; the last is of longer ones
	Seconds float64                        `json:"seconds"`
}

func (l *Latency) observe(d time.Duration) {
	i := 0
	for i < len(LatencyBounds) && d > LatencyBounds[i] {
		i++
	}
	l.Counts[i]++
	l.Seconds += d.Seconds()
}

// A Filesystem is one that has watches.
type Filesystem struct {
	Type      string `json:"type"`
	Device    string `json:"device"` // major:minor
	Strategy  string `json:"strategy"`
	Watches   int    `json:"watches"`
	MountOnly bool   `json:"mount_only"`      // what changes otherwise than through this mount is not told, see MountOnly
	Stuck     *Doing `json:"stuck,omitempty"` // what it does not answer, see worker
}

// Doing is what a filesystem has been asked for, since when.
type Doing struct {
	Since time.Time `json:"since"`
	What  string    `json:"what"`
}

// WatchStatus is a watch as it is now.
type WatchStatus struct {
	ID          uint64    `json:"id"`
	Directory   string    `json:"directory"` // its path when the watch was opened
	Tree        bool      `json:"tree"`
	Filter      string    `json:"filter"`
	User        string    `json:"user"`
	Share       string    `json:"share"`
	Since       time.Time `json:"since"`
	Pending     int       `json:"pending"` // requests
	Queued      int       `json:"queued"`  // records
	QueuedBytes int       `json:"queued_bytes"`
	Overflowed  bool      `json:"overflowed"` // the next answer says so
	Overflows   uint64    `json:"overflows"`
	Filesystem  string    `json:"filesystem"`
	Device      string    `json:"device"`
	Strategy    string    `json:"strategy"`
}

// do has the goroutine that serves call fn, and fails when ctx is done first or d
// has ended.
func (d *Daemon) do(ctx context.Context, fn func()) error {
	done := make(chan struct{})
	select {
	case d.asks <- func() { fn(); close(done) }:
		<-done
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-d.ended:
		return errEnded
	}
}

var errEnded = errors.New("the daemon has ended")

// Status has the goroutine that serves say what it does; that it answers shows
// that it is not stuck. With watches each of them is listed. It fails when ctx
// is done first.
func (d *Daemon) Status(ctx context.Context, watches bool) (s Status, err error) {
	err = d.do(ctx, func() { s = d.status(watches) })
	return s, err
}

// status says what d does, in the goroutine that serves.
func (d *Daemon) status(watches bool) Status {
	s := d.state
	d.control.mu.Lock()
	s.Policy = d.control.policy
	d.control.mu.Unlock()
	d.stats.mu.Lock()
	s.Total, s.LastOverflow, s.Incidents, s.Shares = d.stats.total, d.stats.loss, slices.Clone(d.stats.incidents), d.stats.list()
	d.stats.mu.Unlock()
	if d.loop == nil {
		return s
	}
	s.Open.QueuedBytes = d.loop.budget.total()
	d.loop.each(func(l *worker) {
		if doing := l.doing(); doing != nil {
			s.Filesystems = append(s.Filesystems, Filesystem{Type: l.filesystem.Type, Device: l.filesystem.Device,
				MountOnly: MountOnly(l.filesystem.Type), Stuck: doing})
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		s.Open.Watches += len(l.watches)
		s.Open.Trees += l.trees
		s.Open.Requests += len(l.waiting)
		if watches {
			s.Watches = append(s.Watches, l.watchStatus()...)
		}
	})
	if watches {
		slices.SortFunc(s.Watches, func(a, b WatchStatus) int { return cmp.Compare(a.ID, b.ID) })
		s.Filesystems = filesystems(s.Filesystems, s.Watches)
	}
	return s
}

// stats outlive a loop.
type stats struct {
	mu        sync.Mutex
	total     Total
	loss      *Loss // the last one; not changed once it is here
	incidents []Incident
	shares    map[string]*ShareStatus
}

const (
	maxIncidents = 32
	// maxShares bounds those that have numbers of their own; the others have
	// some together, without a name.
	maxShares = 256
)

func newStats() *stats { return &stats{shares: make(map[string]*ShareStatus)} }

// note takes down an incident of now.
func (s *stats) note(i Incident) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(i)
}

// count has fn change the numbers.
func (s *stats) count(fn func(*Total)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(&s.total)
}

// overflowed takes down that the fanotify queue of a filesystem has overflowed so often.
func (s *stats) overflowed(n uint64, fs Superblock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total.QueueOverflows += n
	s.add(Incident{Kind: QueueOverflow, Reason: fmt.Sprintf("more changed at once on %v than fs.fanotify.max_queued_events", fs)})
}

// lost takes down that a watch has lost records.
func (s *stats) lost(about WatchStatus, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total.Overflows++
	s.loss = &Loss{time.Now(), about.Directory, why}
	s.of(about.Share).Overflows++
	s.add(Incident{Kind: Overflow, Directory: about.Directory, User: about.User, Share: about.Share, Reason: why})
}

func (s *stats) add(i Incident) {
	i.First, i.Last, i.Count = time.Now(), time.Now(), 1
	if n := len(s.incidents); n > 0 {
		last := s.incidents[n-1]
		if last.Kind == i.Kind && last.Directory == i.Directory && last.User == i.User && last.Share == i.Share && last.Reason == i.Reason {
			i.First, i.Count = last.First, last.Count+1
			s.incidents = s.incidents[:n-1]
		}
	}
	if len(s.incidents) == maxIncidents {
		s.incidents = slices.Delete(s.incidents, 0, 1)
	}
	s.incidents = append(s.incidents, i)
}

// of returns the numbers of a share.
func (s *stats) of(share string) *ShareStatus {
	of := s.shares[share]
	if of == nil && len(s.shares) >= maxShares {
		share = ""
		of = s.shares[share]
	}
	if of == nil {
		of = &ShareStatus{Share: share}
		s.shares[share] = of
	}
	return of
}

func (s *stats) list() (list []ShareStatus) {
	for _, share := range s.shares {
		list = append(list, *share)
	}
	slices.SortFunc(list, func(a, b ShareStatus) int { return cmp.Compare(a.Share, b.Share) })
	return list
}

// told takes down how a request of a share's client ended; the oldest of its
// records was there to be read for so long.
func (s *stats) told(share string, c *Completion, after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of := s.of(share)
	s.total.Responses++
	of.Responses++
	switch c.Status {
	case genl.StatusEnumDir:
		s.total.EnumDirs++
		of.EnumDirs++
	case genl.StatusDeletePending:
		s.total.DeletePendings++
	default:
		s.total.Records += uint64(len(c.Records))
		of.Records += uint64(len(c.Records))
		of.Latency.observe(after)
	}
}

// watchStatus lists the watches, in no order.
func (l *worker) watchStatus() []WatchStatus {
	list := make([]WatchStatus, 0, len(l.watches))
	for _, w := range l.watches {
		s := w.about
		s.Filter = w.filter.String()
		s.Pending, s.Queued, s.QueuedBytes, s.Overflowed = len(w.pending), len(w.queue.records), w.queue.size, w.queue.lost
		list = append(list, s)
	}
	return list
}

// filesystems sums watches up, the filesystem with the most first, and adds those
// that are stuck.
func filesystems(stuck []Filesystem, watches []WatchStatus) []Filesystem {
	count := make(map[Filesystem]int)
	for _, w := range watches {
		fs := Filesystem{Type: w.Filesystem, Device: w.Device, Strategy: w.Strategy, MountOnly: MountOnly(w.Filesystem)}
		for i := range stuck {
			if stuck[i].Type == w.Filesystem && stuck[i].Device == w.Device {
				fs.Stuck = stuck[i].Stuck
			}
		}
		count[fs]++
	}
	list := slices.DeleteFunc(slices.Clone(stuck), func(fs Filesystem) bool {
		return slices.ContainsFunc(watches, func(w WatchStatus) bool { return w.Filesystem == fs.Type && w.Device == fs.Device })
	})
	for fs, n := range count {
		fs.Watches = n
		list = append(list, fs)
	}
	slices.SortFunc(list, func(a, b Filesystem) int {
		return cmp.Or(cmp.Compare(b.Watches, a.Watches), cmp.Compare(a.Device, b.Device), cmp.Compare(a.Strategy, b.Strategy))
	})
	return list
}
