// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"ksmbd-notifyd/fanotify/mounts"
)

// other watches mounts by a group of its own. It implements Apart.
type other struct {
	t    *testing.T
	g    *Group
	w    *Watch
	told []Change
}

func (o *other) Take(fn func(Change)) {
	drain(o.t, o.g)
	for _, c := range o.told {
		fn(c)
	}
	o.told = nil
}

func (o *other) Close() error { return o.w.Close() }

// What is mounted below a watch tree and left to somebody else is told as if it were not.
func TestLeave(t *testing.T) {
	for _, kind := range []string{"tmpfs", "overlay"} {
		t.Run(kind, func(t *testing.T) {
			dir := mountTest(t, kind)
			g := openTest(t)
			defer g.Close()
			og := openTest(t)
			defer og.Close()
			g.Leave(func(kind string) bool { return kind == "tmpfs" }, func(dir *os.File, m mounts.Mount) Apart {
				o := &other{t: t, g: og}
				var err error
				o.w, err = og.WatchMount(dir, m.Device, allOps, func(c Change) {
					c.Name, c.OldName = append([]byte(nil), c.Name...), append([]byte(nil), c.OldName...)
					if len(c.OldName) == 0 {
						c.OldName = nil
					}
					o.told = append(o.told, c)
				})
				if err != nil {
					t.Fatal(err)
				}
				return o
			})
			mountTmpfs(t, dir+"/a/m")
			if err := errJoin(os.MkdirAll(dir+"/a/m/d/e", 0o755)); err != nil {
				t.Fatal(err)
			}
			_, told := watchTest(t, g, dir, true, Create|Delete|Rename)
			_, above := watchTest(t, g, dir+"/a", true, Create|Rename)
			touch(t, dir+"/a/m/f")
			touch(t, dir+"/a/m/d/e/f")
			drain(t, g)
			wantTold(t, told, "create a/m/f", "create a/m/d/e/f")
			wantTold(t, above, "create m/f", "create m/d/e/f")
			if err := errJoin(os.Rename(dir+"/a/m/f", dir+"/a/m/d/g"), os.Remove(dir+"/a/m/d/e/f")); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
			wantTold(t, told, "rename a/m/f -> a/m/d/g", "delete a/m/d/e/f")
			wantTold(t, above, "rename m/f -> m/d/g")
			if err := os.Rename(dir+"/a", dir+"/b"); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
			*told = nil
			touch(t, dir+"/b/m/h")
			drain(t, g)
			wantTold(t, told, "create b/m/h")

			mountTmpfs(t, dir+"/b/m/d") // in what is left, so it is the other's
			drain(t, g)
			*told = nil
			touch(t, dir+"/b/m/d/i")
			drain(t, g)
			wantTold(t, told, "create b/m/d/i")
			if err := errJoin(unix.Unmount(dir+"/b/m/d", 0), unix.Unmount(dir+"/b/m", 0)); err != nil {
				t.Fatal(err)
			}
			drain(t, g)
			*told = nil
			touch(t, dir+"/b/m/j")
			drain(t, g)
			wantTold(t, told, "create b/m/j")
		})
	}
}
