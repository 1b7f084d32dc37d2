// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// workloads are everyday work in a directory, $1, by shell, and the programs that it takes.
var workloads = []struct{ name, tools, script string }{
	{"git", "git", `git init -q a; cd a; git config user.name t; git config user.email t@t; for i in 1 2 3 4 5; do mkdir d$i; echo $i > d$i/f; git add .; git commit -qm $i; done
		git checkout -q -b other HEAD~2; echo x > g; git add g; git commit -qm g; git rebase -q - 2>/dev/null; git checkout -q HEAD~3; git checkout -q other; git stash -q; git gc -q; cd ..; git clone -q a b; cd b; git pull -q`},
	{"copies", "tar", `mkdir -p s/x/y/z; for i in $(seq 200); do echo $i > s/x/$i; echo $i > s/x/y/z/$i; done; cp -a s c; cp -al s l; tar cf t.tar c; mkdir u; tar xf t.tar -C u; rm -rf s c l u`},
	{"rsync", "rsync", `mkdir -p s/x/y; for i in $(seq 100); do echo $i > s/x/$i; echo $i > s/x/y/$i; done; rsync -a s/ d; for i in 3 5 7; do echo more >> s/x/$i; rm s/x/y/$i; done; rsync -a --delete s/ d; rsync -a --inplace --link-dest=$PWD/d s/ e`},
	{"editors", "vi sed", `echo 1 > f; for i in 1 2 3 4 5; do echo $i > .f.swp; echo $i > f~; mv f~ f; rm .f.swp; cp f f.bak; echo $i > f.new; mv f.new f; done
		sed -i s/5/6/ f; for how in yes no; do TERM=dumb vi -es -u NONE -N --cmd "set backup writebackup backupcopy=$how" -c 's/$/x/' -c wq f; done; [ "$(cat f)" = 6xx ]`},
	{"logs", "logrotate gzip", `for i in 1 2 3 4 5; do echo x >> log; [ -e log.1 ] && mv log.1 log.2; mv log log.1; gzip -c log.1 > log.1.gz; done
		for how in create copytruncate; do echo "$PWD/r.log { size 1
		rotate 3
		compress
		$how
		}" > conf; chmod 644 conf; for i in 1 2 3 4 5; do echo $i >> r.log; logrotate -s $PWD/state conf; done; done`},
	{"moves", "", `mkdir -p p/q/r out; for i in 1 2 3 4 5; do touch p/q/r/$i; mv p p$i; mv p$i/q q$i; touch q$i/r/x; mv q$i p$i/q; mv p$i p; done; rm -rf p`},
	{"database", "sqlite3", `for mode in delete truncate wal; do for i in 1 2 3 4 5; do sqlite3 db "pragma journal_mode=$mode; create table if not exists t(a); insert into t values($i); update t set a = a + 1;"; done; done > /dev/null; sqlite3 db vacuum`},
	{"build", "make", `for i in $(seq 60); do echo $i > $i.c; done
		printf 'all: $(patsubst %%.c,o/%%.o,$(wildcard *.c))\n\tcat $^ > prog.tmp && mv prog.tmp prog\no/%%.o: %%.c\n\t@mkdir -p o && cp $< $@.tmp && mv $@.tmp $@ && echo $@: $< > $@.d\nclean:\n\trm -rf o prog\n' > Makefile
		make -s -j4; touch 7.c; make -s -j4; make -s clean; make -s -j4`},
	{"burst", "", `mkdir b; i=0; while [ $i -lt 10000 ]; do : > b/$i; i=$((i+1)); done; rm -r b`},
}

// openAsPackaged opens a group whose queue is as long as packaging/90-ksmbd-notifyd.conf has it.
func openAsPackaged(t *testing.T) *Group {
	return openQueued(t, 131072)
}

// TestWorkloads: everyday work is told by name, and nobody has to list anew.
func TestWorkloads(t *testing.T) {
	for _, f := range testFilesystems {
		if f.name == "subvolume" || f.name == "overlay-export" { // as btrfs and ext4
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			mnt := mountTest(t, f.name)
			for _, w := range workloads {
				t.Run(w.name, func(t *testing.T) {
					needTools(t, w.tools)
					dir := filepath.Join(mnt, w.name)
					if err := os.Mkdir(dir, 0o755); err != nil {
						t.Fatal(err)
					}
					g := openAsPackaged(t)
					defer g.Close()
					_, tree := watchTest(t, g, dir, true, allOps)
					_, single := watchTest(t, g, dir, false, allOps)
					ctx, done := context.WithCancel(context.Background())
					crashed := false
					go func() {
						defer done()
						script := exec.Command("sh", "-c", `set -e; cd "$1"; `+w.script, "sh", dir)
						out, err := script.CombinedOutput()
						crashed = strings.Contains(string(out), "endpoint is not connected") // see model
						if err != nil && !crashed {
							t.Errorf("%v: %s", err, out)
						}
					}()
					for g.Wait(ctx) == nil {
						drain(t, g)
						time.Sleep(2 * time.Millisecond) // the gap that a daemon leaves
					}
					<-ctx.Done()
					drain(t, g)
					if crashed {
						t.Fatal("the FUSE server crashed")
					}
					lists := 0
					for _, told := range [][]string{*tree, *single} {
						for _, c := range told {
							if c == "overflow" {
								lists++
							}
						}
					}
					t.Logf("%d changes, %d listings", len(*tree), lists)
					if lists > 0 {
						t.Errorf("%d listings, of %d changes", lists, len(*tree))
					}
					if len(*tree) == 0 || len(*single) == 0 {
						t.Error("nothing was told")
					}
				})
			}
		})
	}
}

// TestRemoveMany: 10,000 files are removed while nobody reads. The kernel makes two events of
// each, and all are told.
func TestRemoveMany(t *testing.T) {
	for _, f := range testFilesystems {
		if f.name != "tmpfs" && f.name != "btrfs" && f.name != "overlay" && f.name != "fuse" { // one of each strategy
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			dir := mountTest(t, f.name)
			g := openAsPackaged(t)
			defer g.Close()
			const n = 10_000
			for i := range n {
				touch(t, fmt.Sprint(dir, "/", i))
			}
			_, tree := watchTest(t, g, dir, true, allOps)
			_, single := watchTest(t, g, dir, false, allOps)
			for i := range n {
				if err := os.Remove(fmt.Sprint(dir, "/", i)); err != nil {
					t.Fatal(err)
				}
			}
			drain(t, g)
			for _, told := range [][]string{*tree, *single} {
				if len(told) != n || slices.Contains(told, "overflow") {
					t.Errorf("told of %d removals, the last %q", len(told), told[len(told)-1])
				}
			}
		})
	}
}

// needTools skips the test if a program is missing.
func needTools(t *testing.T, names string) {
	t.Helper()
	for _, name := range strings.Fields(names) {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}
