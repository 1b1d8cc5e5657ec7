package main

import (
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

const (
	e2e     = "e2e-test-images/"
	staging = "k8s-staging-cri-tools/"
	own     = "quilt-test/"
)

// catalogue collects images; the first error stays.
type catalogue struct {
	images []image
	err    error
}

// layer passes a finished layer on and keeps the error, if any.
func (c *catalogue) layer(done layer, err error) layer {
	if err != nil && c.err == nil {
		c.err = err
	}
	return done
}

// add puts one image in. Its label makes it an image of its own even where it shares all layers.
func (c *catalogue) add(where string, tags string, form format, config runConfig, layers ...layer) *image {
	config.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, config.Env...)
	config.Labels = map[string]string{"quilt.test.image": where + ":" + tags}
	c.images = append(c.images, image{
		repository: where, tags: strings.Fields(tags), format: form, config: config, layers: layers,
	})
	return &c.images[len(c.images)-1]
}

// everything is all test images; README.md in this directory says what each is for.
func everything(p programs) ([]image, error) {
	c := &catalogue{}
	base := c.layer(baseLayer(p))
	c.critestRun(p, base)
	c.critestPull(base)
	c.quilt(p)
	return c.images, c.err
}

var sh = runConfig{Cmd: []string{"sh"}}

// critestRun adds the images that critest runs containers from.
func (c *catalogue) critestRun(p programs, base layer) {
	c.add(e2e+"busybox", "1.29-2", docker, sh, base).index = true
	c.add(e2e+"busybox", "1.29-4", oci, sh, base)

	serve := runConfig{Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGQUIT"}
	c.add(e2e+"nginx", "1.14-2", docker, serve, base, c.layer(nginxLayer(p, 80)))
	c.add(staging+"hostnet-nginx-"+runtime.GOARCH, "latest", oci, serve, base, c.layer(nginxLayer(p, 12003)))

	httpd := c.layer(single(func(w *layerWriter) {
		w.text("srv/index.html", "<h1>It works!</h1>\n")
		w.script("usr/local/bin/httpd-foreground",
			"#!/bin/sh\necho 'httpd: serving /srv on port 80'\nexec httpd -f -p 80 -h /srv\n")
	}))
	c.add(e2e+"httpd", "2.4.39-4", oci, runConfig{Cmd: []string{"httpd-foreground"}}, base, httpd).index = true

	nnp := c.layer(single(func(w *layerWriter) { w.copy("nnp", 0o4755, filepath.Join(p.built, "nnp")) }))
	c.add(e2e+"nonewprivs", "1.3", docker, runConfig{Entrypoint: []string{"/nnp"}}, base, nnp)

	pause := c.layer(single(func(w *layerWriter) { w.copy("pause", 0o755, filepath.Join(p.built, "pause")) }))
	for i, tag := range []string{"3.9", "3.10.1"} {
		form := []format{docker, oci}[i]
		c.add("pause", tag, form, runConfig{Entrypoint: []string{"/pause"}}, pause).index = true
	}
	c.add("docker/library/busybox", "1.35.0-glibc 1-uclibc 1 1-glibc 1-musl latest", oci, sh, base)
	c.add("library/busybox", "latest", oci, sh, base).index = true
}

// critestPull adds the images that critest pulls, inspects and removes.
func (c *catalogue) critestPull(base layer) {
	users := map[string]string{
		"uid": "1002", "username": "www-data", "uid-group": "1003:1003", "username-group": "www-data:100",
	}
	for _, name := range []string{"uid", "username", "uid-group", "username-group"} {
		config := runConfig{Cmd: sh.Cmd, User: users[name]}
		c.add(staging+"test-image-user-"+name, "latest", docker, config, base)
	}
	members := c.layer(single(func(w *layerWriter) {
		w.text("etc/passwd", passwd+"default-user:x:1000:1000:default-user:/home/default-user:/bin/sh\n")
		w.text("etc/group", group+"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")
		w.dir("home/default-user", 0o755, owner{1000, 1000})
	}))
	config := runConfig{Cmd: sh.Cmd, User: "1000"}
	c.add(staging+"test-image-predefined-group", "latest", oci, config, base, members)

	for i := 1; i <= 3; i++ {
		number := strconv.Itoa(i)
		mark := c.layer(single(func(w *layerWriter) { w.text("image", number+"\n") }))
		c.add(staging+"test-image-"+number, "latest", format(i%2), sh, base, mark).index = i == 3
	}
	c.add(staging+"test-image-tags", "1 2 3", docker, sh, base).index = true
	c.add(staging+"test-image-latest", "latest", oci, sh, base)
	c.add(staging+"test-image-tag", "test", docker, sh, base)
	c.add(staging+"test-image-tag", "all", oci, sh, base).index = true
}

// quilt adds the images of our own tests, of the demo and of the bench.
func (c *catalogue) quilt(p programs) {
	small := c.layer(staticLayer(p, true))
	plain := c.layer(staticLayer(p, false))
	c.add(own+"busybox", "latest 1.35", oci, sh, small).index = true
	c.add(own+"busybox-docker", "latest", docker, sh, small).index = true
	c.add(own+"busybox-plain", "latest", oci, sh, plain)

	first := c.layer(single(func(w *layerWriter) {
		w.text("data/kept", "kept\n")
		w.text("data/removed", "must not be seen\n")
		w.text("data/replaced", "must not be seen\n")
		w.text("opaque/old", "must not be seen\n")
		w.text("gone/inside", "must not be seen\n")
		w.fileOf("data/owned", 0o640, owner{1000, 2000}, nil, []byte("owned\n"))
		w.fileOf("data/labelled", 0o644, root, map[string]string{"user.quilt": "stitched"}, []byte("labelled\n"))
		w.hardLink("data/kept-too", "data/kept")
		w.symlink("data/pointer", "kept")
		w.symlink("data/dangling", "/nowhere")
	}))
	second := c.layer(single(func(w *layerWriter) {
		w.whiteout("data/removed")
		w.whiteout("gone")
		w.opaque("opaque")
		w.text("opaque/new", "new\n")
		w.text("data/replaced", "replaced\n")
		w.hardLink("data/kept-again", "data/kept")
	}))
	c.add(own+"whiteouts", "latest", oci, sh, small, first, second)

	layers := []layer{small}
	for i := range 8 {
		number := strconv.Itoa(i)
		layers = append(layers, c.layer(single(func(w *layerWriter) { w.text("layers/"+number, number+"\n") })))
	}
	c.add(own+"many-layers", "latest", docker, sh, layers...)
	speak := runConfig{
		Entrypoint: []string{"echo"}, Cmd: []string{"hello from the image"},
		Env: []string{"GREETING=hello"}, WorkingDir: "/var/www", User: "www-data",
	}
	c.add(own+"configured", "latest", docker, speak, small)
}
