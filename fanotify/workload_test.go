// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"context"
	"os/exec"
	"testing"
	"time"
)

// workloads are everyday work in a directory, $1, by shell.
var workloads = []struct{ name, script string }{
	{"git", `cd $1; git init -q a; cd a; git config user.name t; git config user.email t@t; for i in 1 2 3 4 5; do mkdir d$i; echo $i > d$i/f; git add .; git commit -qm $i; done
		git checkout -q -b other HEAD~2; echo x > g; git add g; git commit -qm g; git rebase -q master 2>/dev/null || git rebase -q main; git gc -q; cd ..; git clone -q a b`},
	{"copies", `cd $1; mkdir -p s/x/y/z; for i in $(seq 200); do echo $i > s/x/$i; echo $i > s/x/y/z/$i; done; cp -a s c; cp -al s l; tar cf t.tar s; mkdir u; tar xf t.tar -C u; rm -rf s c l u`},
	{"editors", `cd $1; echo 1 > f; for i in 1 2 3 4 5; do echo $i > .f.swp; echo $i > f~; mv f~ f; rm .f.swp; cp f f.bak; echo $i > f.new; mv f.new f; done`},
	{"logs", `cd $1; for i in 1 2 3 4 5; do echo x >> log; [ -e log.1 ] && mv log.1 log.2; mv log log.1; gzip -c log.1 > log.1.gz; done`},
	{"moves", `cd $1; mkdir -p p/q/r out; for i in 1 2 3 4 5; do touch p/q/r/$i; mv p p$i; mv p$i/q q$i; touch q$i/r/x; mv q$i p$i/q; mv p$i p; done; rm -rf p`},
	{"burst", `cd $1; mkdir b; i=0; while [ $i -lt 3000 ]; do : > b/$i; i=$((i+1)); done; rm -r b`},
}

// TestWorkloads: everyday work is told by name, and nobody has to list anew.
func TestWorkloads(t *testing.T) {
	for _, f := range testFilesystems {
		if f.name != "tmpfs" && f.name != "overlay" { // one of each strategy for trees
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			for _, w := range workloads {
				t.Run(w.name, func(t *testing.T) {
					dir := mountTest(t, f.name)
					g := openTest(t)
					defer g.Close()
					_, tree := watchTest(t, g, dir, true, allOps)
					_, single := watchTest(t, g, dir, false, allOps)
					ctx, done := context.WithCancel(context.Background())
					go func() {
						defer done()
						if out, err := exec.Command("sh", "-c", "set -e; "+w.script, "sh", dir).CombinedOutput(); err != nil {
							t.Errorf("%v: %s", err, out)
						}
					}()
					for g.Wait(ctx) == nil {
						drain(t, g)
						time.Sleep(2 * time.Millisecond) // the gap that a daemon leaves
					}
					<-ctx.Done()
					drain(t, g)
					lists := 0
					for _, told := range [][]string{*tree, *single} {
						for _, c := range told {
							if c == "overflow" {
								lists++
							}
						}
					}
					if lists > 0 && g.Overflows() == 0 {
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
