package main

import (
	"fmt"
	"os/exec"
	"path"
	"strings"
)

// programs says where the ingredients are on this machine.
type programs struct {
	busybox string // static; every applet comes from it
	shell   string // busybox whose shell looks commands up in PATH
	nginx   string
	built   string // directory with nnp and pause
}

const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/:/bin/false
`

const group = `root:x:0:
daemon:x:1:
www-data:x:33:
users:x:100:
nogroup:x:65534:
`

// The two commands that critest runs and that Debian's busybox lacks.
const (
	pgrep = `#!/bin/sh
# pgrep NAME: prints the ids of the processes with that name.
for dir in /proc/[0-9]*; do
    { read -r name < "$dir/comm"; } 2>/dev/null || continue
    if [ "$name" = "$1" ]; then
        echo "${dir#/proc/}"
        found=yes
    fi
done
[ -n "$found" ]
`
	ipcs = `#!/bin/sh
# ipcs -m: prints the shared memory segments of this IPC namespace.
cat /proc/sysvipc/shm
`
)

// skeleton adds the directories and accounts that every image has.
func skeleton(w *layerWriter) {
	for _, dir := range []string{"bin", "dev", "etc", "proc", "run", "sbin", "sys", "usr/bin", "usr/sbin"} {
		w.dir(dir, 0o755, root)
	}
	w.dir("root", 0o700, root)
	w.dir("tmp", 0o1777, root)
	w.dir("var/www", 0o755, owner{33, 33})
	w.symlink("var/run", "/run")
	w.text("etc/passwd", passwd)
	w.text("etc/group", group)
}

// applets adds busybox under every one of its names, all of them hard links to one file: a test masks
// one of them and still needs the others. Names in without are left out.
func applets(w *layerWriter, busybox string, without ...string) error {
	listed, err := exec.Command(busybox, "--list-full").Output()
	if err != nil {
		return fmt.Errorf("ask %s for its applets: %w", busybox, err)
	}
	skip := map[string]bool{}
	for _, name := range without {
		skip[name] = true
	}
	w.copy("bin/busybox", 0o755, busybox)
	for _, name := range strings.Fields(string(listed)) {
		if base := path.Base(name); base != "busybox" && !skip[base] {
			w.hardLink(name, "bin/busybox")
		}
	}
	return nil
}

// withLibraries adds a program and everything it is linked against.
func withLibraries(w *layerWriter, name, program string) error {
	libraries, err := closure(program)
	if err != nil {
		return err
	}
	w.copy(name, 0o755, program)
	for _, library := range libraries {
		w.copy(strings.TrimPrefix(library, "/"), 0o755, library)
	}
	return nil
}

// staticLayer is busybox and nothing else.
func staticLayer(p programs, compress bool) (layer, error) {
	w := newLayer()
	skeleton(w)
	if err := applets(w, p.busybox); err != nil {
		return layer{}, err
	}
	return w.finish(compress)
}

// baseLayer is what the images of critest stand on. Its shell is not the static one, which runs its
// own applets whatever happened to their files, so that masking /bin/ls would change nothing.
func baseLayer(p programs) (layer, error) {
	w := newLayer()
	skeleton(w)
	if err := applets(w, p.busybox, "sh", "ash"); err != nil {
		return layer{}, err
	}
	if err := withLibraries(w, "bin/sh", p.shell); err != nil {
		return layer{}, err
	}
	w.hardLink("bin/ash", "bin/sh")
	w.script("usr/bin/pgrep", pgrep)
	w.script("usr/bin/ipcs", ipcs)
	return w.finish(true)
}

// nginxLayer is the real nginx, with a page that says so, on the given port.
func nginxLayer(p programs, port int) (layer, error) {
	w := newLayer()
	w.dir("run", 0o755, root)
	w.dir("var/lib/nginx", 0o755, owner{33, 33})
	w.dir("var/log/nginx", 0o755, root)
	if err := withLibraries(w, "usr/sbin/nginx", p.nginx); err != nil {
		return layer{}, err
	}
	w.text("usr/share/nginx/html/index.html",
		"<!DOCTYPE html>\n<title>Welcome to nginx!</title>\n<h1>Welcome to nginx!</h1>\n")
	w.text("etc/nginx/nginx.conf", fmt.Sprintf(`user www-data;
worker_processes 1;
pid /var/run/nginx.pid;
error_log stderr;
events { worker_connections 64; }
http {
    access_log off;
    default_type text/html;
    server {
        listen %d;
        root /usr/share/nginx/html;
    }
}
`, port))
	return w.finish(true)
}

// single makes a layer of one kind of thing.
func single(fill func(*layerWriter)) (layer, error) {
	w := newLayer()
	fill(w)
	return w.finish(true)
}
