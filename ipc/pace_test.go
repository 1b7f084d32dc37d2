// SPDX-License-Identifier: GPL-2.0-or-later

package ipc

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ksmbd-notifyd/fanotify"
)

// crowd is watches of one directory, and one of another, that a conversation serves.
type crowd struct {
	*world
	n, requests int
}

const (
	crowdWatches = 50
	crowdRests   = 20 * time.Millisecond
	crowdTakes   = crowdRests / restShare // to be told of a change
)

// newCrowd has all of them told of a first change, and ask again.
func newCrowd(t *testing.T) *crowd {
	c := &crowd{world: newWorld(t), n: crowdWatches}
	c.batch, c.takes = 4*c.n, crowdTakes/(crowdWatches-1)
	for i := range c.n + 1 {
		c.items = append(c.items, c.watchItem(uint64(1+i)))
	}
	t.Cleanup(c.serving())
	synctest.Wait()
	c.ask(c.n + 1)
	c.changed("a")
	c.toldAll("+a")
	c.ask(c.n)
	return c
}

// ask has the first watches ask.
func (c *crowd) ask(n int) {
	for i := range n {
		c.requests++
		c.items = append(c.items, requestItem(uint64(c.requests), uint64(1+i)))
	}
	c.bell <- struct{}{}
	synctest.Wait()
}

// changed has things changed in the first directory.
func (c *crowd) changed(names ...string) {
	for _, name := range names {
		for i := range c.n {
			c.happens(i, create, name)
		}
	}
	c.read()
}

func (c *crowd) read() {
	c.wake <- struct{}{}
	time.Sleep(crowdTakes + gap)
	synctest.Wait()
}

// toldAll checks that all who watch it were told, and nobody else.
func (c *crowd) toldAll(records string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, line := range c.log {
		if _, got, _ := strings.Cut(line, ": "); got != records {
			c.t.Fatalf("ksmbd was told %q, want %q", line, records)
		}
	}
	if len(c.log) != c.n {
		c.t.Errorf("%d watches were told, of %d", len(c.log), c.n)
	}
	c.log = nil
}

// Where many watches are told the same, what happens soon after that they are told together; another
// one is told at once.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t)
		c.changed("b", "c")
		c.told()
		if n := c.loop.budget.total(); n != 0 {
			t.Errorf("%d bytes are charged of what is about to be told", n)
		}
		c.happens(c.n, create, "x")
		c.wake <- struct{}{}
		time.Sleep(gap)
		synctest.Wait()
		c.told(fmt.Sprintf("%d: +x", c.n+1))
		time.Sleep(crowdRests)
		synctest.Wait()
		c.toldAll("+b +c")

		// Who has rested is told at once.
		c.ask(c.n)
		time.Sleep(crowdRests)
		c.changed("d")
		c.toldAll("+d")
	})
}

// What would not fit a buffer is told before, and so is what is long, or that a directory is gone.
func TestRestIsCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t)
		long := strings.Repeat("f", 800) // 1614 bytes in a record
		c.changed("b"+long, "c"+long)
		c.told()
		c.changed("d" + long)
		c.toldAll("+b" + long + " +c" + long)
		c.ask(c.n)
		c.told()
		c.change(0, fanotify.Change{Op: fanotify.Gone})
		c.read()
		c.told(fmt.Sprintf("%d: DELETE_PENDING", c.requests-c.n+1))
	})
}

// A request that is cancelled meanwhile leaves what it was to be told to the next, if there is room for that.
func TestRestAfterCancel(t *testing.T) {
	for limit, want := range map[int]string{maxQueued: "+b", 0: "ENUM_DIR"} {
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd(t)
			c.changed("b")
			c.told()
			c.loop.budget.limit = limit
			c.items = append(c.items, cancelItem(uint64(c.requests-c.n+1)), unwatchItem(2))
			c.bell <- struct{}{}
			synctest.Wait()
			time.Sleep(maxRest)
			synctest.Wait()
			if len(c.log) != c.n-2 {
				t.Errorf("%d watches were told, of %d", len(c.log), c.n-2)
			}
			c.log = nil
			c.ask(1)
			time.Sleep(gap)
			synctest.Wait()
			c.told(fmt.Sprintf("%d: %s", c.requests, want))
		})
	}
}

// One watch that is told the same again and again, as of a file that is being written, does not rest.
func TestRestOfOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.takes = gap / 40
		w.items = []any{w.watchItem(1)}
		t.Cleanup(w.serving())
		synctest.Wait()
		for i := range uint64(100) {
			w.items = append(w.items, requestItem(10+i, 1))
			w.bell <- struct{}{}
			synctest.Wait()
			w.happens(0, fanotify.Modify, "log")
			w.wake <- struct{}{}
			time.Sleep(2 * gap)
			synctest.Wait()
			w.told(fmt.Sprintf("%d: *log", 10+i))
		}
	})
}

// How long a watch rests follows from how many are told the same, and what that takes.
func TestRestsUntil(t *testing.T) {
	told := time.Now()
	for _, test := range []struct {
		each   time.Duration
		reach  int // 0 for none
		rested bool
		over   bool
		want   time.Duration // after it was told; 0 for no rest
	}{
		{each: time.Millisecond},
		{each: time.Millisecond, reach: 1},
		{each: gap / restShare, reach: 2},
		{each: gap/restShare + 1, reach: 2, want: gap + restShare},
		{each: gap / restShare, reach: 3, want: 2 * gap},
		{each: time.Millisecond, reach: 3, rested: true},
		{each: time.Millisecond, reach: 3, over: true},
		{each: time.Millisecond, reach: 1000, want: maxRest},
	} {
		p, w := pace{each: test.each, over: test.over}, &watch{told: told, rested: test.rested}
		if test.reach > 0 {
			w.reach = &test.reach
		}
		want := time.Time{}
		if test.want > 0 {
			want = told.Add(test.want)
		}
		if got := p.restsUntil(w); !got.Equal(want) {
			t.Errorf("%+v: %v", test, got.Sub(told))
		}
	}
	var p pace
	for i, want := range []time.Duration{time.Millisecond, 2 * time.Millisecond} {
		if p.took([]time.Duration{24 * time.Millisecond, 17 * 24 * time.Millisecond}[i], 24); p.each != want {
			t.Errorf("telling takes %v, want %v", p.each, want)
		}
	}
}

// An event is given to those that cost something: who asks, or was told of late and will ask again. Each counts once
// for it, and anew when it comes again after a Drain.
func TestReach(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	e := newEvent(added("a"))
	for _, step := range []struct {
		w    *watch
		want int
	}{
		{&watch{told: now.Add(-maxRest)}, 0},
		{&watch{told: now.Add(-maxRest + 1)}, 1},
		{&watch{pending: make([]request, 1)}, 2},
	} {
		for range 2 {
			if step.w.gives(e, now); *e.reach != step.want || step.w.given != e.reach {
				t.Errorf("%+v: %d", step.w, *e.reach)
			}
		}
	}
	w.newReach() // there was no event
	w.last.event = e
	if w.newReach(); *w.last.event.reach != 0 || *e.reach != 2 {
		t.Error("it is not counted anew")
	}
	reach := w.last.event.reach
	if w.newReach(); w.last.event.reach != reach {
		t.Error("nobody was given it, and it is counted anew")
	}
}

// All that have rested together are told together, and who has ended meanwhile is not.
func TestResume(t *testing.T) {
	w := newWorld(t)
	w.each = time.Millisecond
	for id := uint64(1); id <= 4; id++ {
		w.served(w.watchItem(id), requestItem(11*id, id))
		many := 1000
		w.watches[id].told, w.watches[id].reach = time.Now().Add(time.Hour), &many
		w.happens(int(id-1), create, "a")
	}
	w.drained()
	w.served(unwatchItem(2))
	w.told()
	w.worker.resume(time.Now())
	w.told()
	w.worker.resume(time.Now().Add(2 * time.Hour))
	w.told("11: +a", "33: +a", "44: +a")
	if w.held != nil || !w.resumes.IsZero() {
		t.Errorf("%d are held, until %v", len(w.held), w.resumes)
	}
}

// What concerns nobody is read at once, but for so much of the time; what somebody is told of is gathered.
func TestRestOfQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for _, step := range []struct {
			idle, took time.Duration
			told       bool
			want       time.Duration
		}{
			{took: 0, want: 0},
			{took: 2 * maxCredit, want: gap},
			{took: 0, want: gap}, // it is not paid back yet
			{idle: time.Hour, took: maxCredit, want: 0},
			{took: maxCredit / 10, want: maxCredit / 10 * (readShare - 1)}, // some of that was paid meanwhile
			{idle: time.Hour, told: true, want: gap},
			{idle: time.Hour, want: 0},
		} {
			time.Sleep(step.idle)
			began := time.Now()
			time.Sleep(step.took)
			w.eager = !step.told
			if got := w.worker.rest(began).Sub(time.Now()); got != step.want {
				t.Errorf("%+v: rests for %v", step, got)
			}
		}
		time.Sleep(time.Hour)
		w.eager, w.resumes = true, time.Now()
		if got := w.worker.rest(time.Now()).Sub(time.Now()); got != gap {
			t.Errorf("somebody is about to be told: rests for %v", got)
		}
	})
}

// Who ends tells all that rest, and does not leave that to the next daemon too.
func TestRestUntilTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t)
		c.changed("b")
		c.told()
		left := make(chan *Part)
		c.loop.each(func(w *worker) {
			w.post(func() error { left <- w.leave(t.Context()); return nil })
		})
		part := <-left
		c.mu.Lock()
		c.log = slices.DeleteFunc(c.log, func(line string) bool { return line == "detach" })
		c.mu.Unlock()
		c.toldAll("+b")
		for id, w := range part.Watches {
			if len(w.Records) > 0 {
				t.Errorf("left to watch %d: %v", id, w.Records)
			}
		}
		time.Sleep(maxRest)
		synctest.Wait()
		c.told()
	})
}
