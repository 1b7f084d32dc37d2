// SPDX-License-Identifier: GPL-2.0-or-later

package fanotify

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ways are those in which files change. Each is done in the directory d, with the file d/f
// and its other name o/l in a directory that is not watched.
var ways = []struct {
	name string
	do   func(d, o string) error
	want string // what is told; "" is nothing
}{
	{"write", func(d, o string) error { return write(d + "/f") }, "modify f"},
	{"truncate", func(d, o string) error { return unix.Truncate(d+"/f", 1) }, "modify f"},
	{"ftruncate", func(d, o string) error { return onFile(d+"/f", func(fd int) error { return unix.Ftruncate(fd, 2) }) }, "modify f"},
	{"fallocate", func(d, o string) error {
		return onFile(d+"/f", func(fd int) error { return unix.Fallocate(fd, 0, 0, 8192) })
	}, "modify f"},
	{"punch", func(d, o string) error {
		return onFile(d+"/f", func(fd int) error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
		})
	}, "modify f"},
	{"copy_file_range", func(d, o string) error {
		return onFile(o+"/src", func(src int) error {
			return onFile(d+"/f", func(fd int) error { _, err := unix.CopyFileRange(src, nil, fd, nil, 4096, 0); return err })
		})
	}, "modify f"},
	{"reflink", func(d, o string) error {
		return onFile(o+"/src", func(src int) error {
			return onFile(d+"/f", func(fd int) error { return unix.IoctlFileClone(fd, src) })
		})
	}, "modify f"},
	{"sendfile", func(d, o string) error {
		return onFile(o+"/src", func(src int) error {
			return onFile(d+"/f", func(fd int) error { _, err := unix.Sendfile(fd, src, nil, 100); return err })
		})
	}, "modify f"},
	{"setxattr", func(d, o string) error { return unix.Setxattr(d+"/f", "user.a", []byte("x"), 0) }, "attrib f"},
	{"removexattr", func(d, o string) error { return unix.Removexattr(d+"/f", "user.a") }, "attrib f"},
	{"chmod", func(d, o string) error { return os.Chmod(d+"/f", 0o640) }, "attrib f"},
	{"chown", func(d, o string) error { return os.Chown(d+"/f", 1, 1) }, "attrib f"},
	{"mtime", func(d, o string) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, d+"/f", []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: 7}}, 0)
	}, "modify f"},
	{"utimes", func(d, o string) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, d+"/f", []unix.Timespec{{Sec: 7}, {Sec: 8}}, 0)
	}, "attrib f"},
	{"chmod directory", func(d, o string) error { return os.Chmod(d+"/s", 0o700) }, "attrib s/"},
	{"setxattr directory", func(d, o string) error { return unix.Setxattr(d+"/s", "user.a", []byte("x"), 0) }, "attrib s/"},
	{"touch directory", func(d, o string) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, d+"/s", []unix.Timespec{{Sec: 7}, {Sec: 8}}, 0)
	}, "attrib s/"},
	{"exchange", func(d, o string) error {
		return unix.Renameat2(unix.AT_FDCWD, d+"/f", unix.AT_FDCWD, d+"/g", unix.RENAME_EXCHANGE)
	}, "rename f -> g,rename g -> f,create g"},
	{"exchange with outside", func(d, o string) error {
		return unix.Renameat2(unix.AT_FDCWD, d+"/g", unix.AT_FDCWD, o+"/x", unix.RENAME_EXCHANGE)
	}, "rename g -> .,rename . -> g"},
	{"whiteout", func(d, o string) error {
		return unix.Renameat2(unix.AT_FDCWD, d+"/g", unix.AT_FDCWD, d+"/h", unix.RENAME_WHITEOUT)
	}, "rename g -> h,create g"},
	{"rename over", func(d, o string) error { return os.Rename(d+"/j", d+"/i") }, "rename j -> i,delete i"},
	{"link", func(d, o string) error { return os.Link(d+"/f", d+"/k") }, "create k"},
	{"unlink", func(d, o string) error { return os.Remove(d + "/k") }, "delete k"},
	{"through another link", func(d, o string) error { return write(o + "/l") }, ""},
	{"by handle", func(d, o string) error { return byHandle(d, d+"/f") }, "modify f"},
	{"io_submit", func(d, o string) error { return onFile(d+"/f", func(fd int) error { return submit(fd, []byte("x")) }) }, ""},
	{"mmap", func(d, o string) error { return mapped(d + "/f") }, ""},
	{"chattr", func(d, o string) error {
		const noDump = 0x40 // FS_NODUMP_FL
		return onFile(d+"/f", func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, noDump) })
	}, ""},
	{"open, link, unlink, write", func(d, o string) error {
		return onFile(d+"/f", func(fd int) error {
			err := errJoin(os.Link(d+"/f", d+"/n"), os.Remove(d+"/f"))
			_, writeErr := unix.Write(fd, []byte("x"))
			return errJoin(err, writeErr)
		})
	}, "create n,delete f,modify f"}, // its new name is told when it is written again, see TestUnlinkedLater
}

func write(name string) error { return os.WriteFile(name, []byte("xyz"), 0o600) }

func onFile(name string, do func(fd int) error) error {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd)
}

func mapped(name string) error {
	return onFile(name, func(fd int) error {
		m, err := unix.Mmap(fd, 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		m[0]++
		return errJoin(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
	})
}

// submit writes at the beginning of a file by io_submit(2), and waits for that.
func submit(fd int, b []byte) error {
	var ctx uintptr
	if _, _, err := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&ctx)), 0); err != 0 {
		return err
	}
	defer unix.Syscall(unix.SYS_IO_DESTROY, ctx, 0, 0)
	var pin runtime.Pinner
	pin.Pin(&b[0])
	defer pin.Unpin()
	const pwrite = 1 // IOCB_CMD_PWRITE
	cb := &struct {  // struct iocb, where numbers are little-endian
		data         uint64
		key, flags   uint32
		opcode       uint16
		priority     int16
		fd           uint32
		buf          uint64
		size         uint64
		offset, more int64
		last         uint64
	}{opcode: pwrite, fd: uint32(fd), buf: uint64(uintptr(unsafe.Pointer(&b[0]))), size: uint64(len(b))}
	if _, _, err := unix.Syscall(unix.SYS_IO_SUBMIT, ctx, 1, uintptr(unsafe.Pointer(&cb))); err != 0 {
		return err
	}
	var event struct{ data, object, result, more int64 }
	if _, _, err := unix.Syscall6(unix.SYS_IO_GETEVENTS, ctx, 1, 1, uintptr(unsafe.Pointer(&event)), 0, 0); err != 0 {
		return err
	}
	runtime.KeepAlive(cb)
	if event.result < 0 {
		return unix.Errno(-event.result)
	}
	return nil
}

// byHandle writes to a file that nobody has looked up by its name since the filesystem
// was mounted, or that looks like that.
func byHandle(d, name string) error {
	fd, err := openByHandle(d, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("x"))
	return err
}

func openByHandle(d, name string) (fd int, err error) {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, name, 0)
	if err != nil {
		return -1, err
	}
	at, err := unix.Open(d, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0)
	return unix.OpenByHandleAt(at, h, unix.O_WRONLY|unix.O_CLOEXEC)
}

// TestWays: each way in which a file changes is told under its name, and nothing else is, but
// for what docs/guarantees.md says.
func TestWays(t *testing.T) {
	for _, f := range testFilesystems {
		t.Run(f.name, func(t *testing.T) {
			dir := mountTest(t, f.name)
			d, o := dir+"/d", dir+"/o"
			if err := errJoin(os.MkdirAll(d+"/s", 0o755), os.Mkdir(o, 0o755), write(d+"/f"), os.Link(d+"/f", o+"/l"), write(o+"/src"),
				write(d+"/g"), write(d+"/i"), write(d+"/j"), write(o+"/x"), os.Truncate(o+"/src", 8192)); err != nil {
				t.Fatal(err)
			}
			runtime.LockOSThread() // what several threads did would not merge
			defer runtime.UnlockOSThread()
			g := openTest(t)
			defer g.Close()
			_, tree := watchTest(t, g, d, true, allOps)
			_, single := watchTest(t, g, d, false, allOps)
			drain(t, g)
			done := 0
			for _, w := range ways {
				*tree, *single = nil, nil
				if err := w.do(d, o); err != nil {
					t.Logf("%s: %v", w.name, err)
					drain(t, g)
					continue
				}
				done++
				drain(t, g)
				for i, told := range []*[]string{tree, single} {
					if w.name == "by handle" && (i == 1 || f.name == "fuse") {
						continue // only the mark of a filesystem hears of it
					}
					if w.name == "by handle" && slices.Contains(*told, "overflow") {
						continue
					}
					rest := slices.Clone(*told)
					for want := range strings.SplitSeq(w.want, ",") {
						if want == "delete i" && (f.name == "overlay" || f.name == "fuse") {
							continue // the event has nothing of the other file
						}
						if at := slices.Index(rest, want); at >= 0 {
							rest = slices.Delete(rest, at, at+1)
						} else if want != "" {
							t.Errorf("%s: %v was told %q, want %q", w.name, []string{"the tree", "the directory"}[i], *told, want)
						}
					}
					if len(rest) > 0 {
						t.Errorf("%s: %v was told of %q too", w.name, []string{"the tree", "the directory"}[i], rest)
					}
				}
			}
			if done < len(ways)/2 {
				t.Errorf("only %d of %d ways could be gone", done, len(ways))
			}
		})
	}
}
