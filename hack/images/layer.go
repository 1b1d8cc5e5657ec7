package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"
)

// epoch is the time of every file: the same input makes the same digests.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// owner is a numeric user and group.
type owner struct{ uid, gid int }

var root = owner{}

// layer is one finished layer: its tar, and the form in which it is served.
type layer struct {
	diffID string // digest of the uncompressed tar
	blob   []byte
	gzip   bool
}

// layerWriter collects the entries of one layer. The first error stays and is returned by the end.
type layerWriter struct {
	buf  bytes.Buffer
	tar  *tar.Writer
	seen map[string]bool
	err  error
}

func newLayer() *layerWriter {
	w := &layerWriter{seen: map[string]bool{}}
	w.tar = tar.NewWriter(&w.buf)
	return w
}

func (w *layerWriter) entry(header *tar.Header, data []byte) {
	if w.err != nil {
		return
	}
	header.ModTime = epoch
	header.Format = tar.FormatPAX
	header.Size = int64(len(data))
	w.seen[strings.Trim(header.Name, "/")] = true
	if w.err = w.tar.WriteHeader(header); w.err == nil {
		_, w.err = w.tar.Write(data)
	}
}

// parents adds the directories above name that the layer does not have yet.
func (w *layerWriter) parents(name string) {
	if dir := path.Dir(name); dir != "." && !w.seen[dir] {
		w.dir(dir, 0o755, root)
	}
}

func (w *layerWriter) dir(name string, mode int64, who owner) {
	w.parents(name)
	w.entry(&tar.Header{
		Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, Uid: who.uid, Gid: who.gid,
	}, nil)
}

func (w *layerWriter) file(name string, mode int64, data []byte) {
	w.fileOf(name, mode, root, nil, data)
}

func (w *layerWriter) text(name, content string) { w.file(name, 0o644, []byte(content)) }

func (w *layerWriter) script(name, content string) { w.file(name, 0o755, []byte(content)) }

// fileOf adds a file with an owner and extended attributes.
func (w *layerWriter) fileOf(name string, mode int64, who owner, xattrs map[string]string, data []byte) {
	w.parents(name)
	records := map[string]string{}
	for key, value := range xattrs {
		records["SCHILY.xattr."+key] = value
	}
	w.entry(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: mode, Uid: who.uid, Gid: who.gid,
		PAXRecords: records,
	}, data)
}

// copy adds a file of this machine, links followed.
func (w *layerWriter) copy(name string, mode int64, from string) {
	data, err := os.ReadFile(from)
	if err != nil && w.err == nil {
		w.err = err
		return
	}
	w.file(name, mode, data)
}

func (w *layerWriter) hardLink(name, target string) {
	w.parents(name)
	w.entry(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o755}, nil)
}

func (w *layerWriter) symlink(name, target string) {
	w.parents(name)
	w.entry(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

// whiteout removes a name of the layers below (OCI image layer specification, "Whiteouts").
func (w *layerWriter) whiteout(name string) {
	w.file(path.Join(path.Dir(name), ".wh."+path.Base(name)), 0o644, nil)
}

// opaque hides what the layers below have in a directory.
func (w *layerWriter) opaque(dir string) {
	w.file(path.Join(dir, ".wh..wh..opq"), 0o644, nil)
}

func (w *layerWriter) finish(compress bool) (layer, error) {
	if w.err == nil {
		w.err = w.tar.Close()
	}
	if w.err != nil {
		return layer{}, fmt.Errorf("write a layer: %w", w.err)
	}
	done := layer{diffID: digestOf(w.buf.Bytes()), blob: w.buf.Bytes(), gzip: compress}
	if !compress {
		return done, nil
	}
	var packed bytes.Buffer
	out, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		return layer{}, err
	}
	if _, err := io.Copy(out, &w.buf); err != nil {
		return layer{}, err
	}
	if err := out.Close(); err != nil {
		return layer{}, err
	}
	done.blob = packed.Bytes()
	return done, nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}
