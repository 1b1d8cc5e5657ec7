package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const built = "../../target/hack"

var ingredients = programs{
	busybox: "/bin/busybox",
	shell:   built + "/busybox/bin/busybox",
	nginx:   "/usr/sbin/nginx",
	built:   built + "/programs",
}

// startRegistry runs Debian's registry until the test ends and returns its address.
func startRegistry(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	content := fmt.Sprintf("version: 0.1\nlog: {level: info, formatter: json}\n"+
		"storage: {filesystem: {rootdirectory: %s/storage}}\nhttp: {addr: '127.0.0.1:0'}\n", dir)
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.Command("docker-registry", "serve", config)
	output, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatalf("run `make deps` first: %v", err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	address := make(chan string, 1)
	go func() {
		listening := regexp.MustCompile(`listening on ([0-9.:]+)`)
		lines := bufio.NewScanner(output)
		for lines.Scan() {
			if found := listening.FindStringSubmatch(lines.Text()); found != nil {
				address <- "http://" + found[1]
			}
		}
	}()
	select {
	case found := <-address:
		return found
	case <-time.After(10 * time.Second):
		t.Fatal("docker-registry does not say where it listens")
		return ""
	}
}

// fetch reads a manifest or blob back and checks that it is what its digest says.
func fetch(t *testing.T, there, digest string) []byte {
	t.Helper()
	request, err := http.NewRequest(http.MethodGet, there, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []format{oci, docker} {
		request.Header.Add("Accept", f.manifestType())
		request.Header.Add("Accept", f.indexType())
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v", there, response.Status, err)
	}
	if digest != "" && digestOf(data) != digest {
		t.Fatalf("%s is %s", there, digestOf(data))
	}
	return data
}

// unpacked returns the tar of a served layer.
func unpacked(t *testing.T, what descriptor, data []byte) []byte {
	t.Helper()
	if !strings.HasSuffix(what.MediaType, "gzip") {
		return data
	}
	packed, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(packed)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// pullBack reads a tagged image as a client does and returns the names in its layers.
func pullBack(t *testing.T, base, repository, tag string) []string {
	t.Helper()
	prefix := base + "/v2/" + repository
	var top manifest
	if err := json.Unmarshal(fetch(t, prefix+"/manifests/"+tag, ""), &top); err != nil {
		t.Fatal(err)
	}
	for _, one := range top.Manifests {
		if one.Platform.Architecture != "s390x" {
			if err := json.Unmarshal(fetch(t, prefix+"/manifests/"+one.Digest, one.Digest), &top); err != nil {
				t.Fatal(err)
			}
		}
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(fetch(t, prefix+"/blobs/"+top.Config.Digest, top.Config.Digest), &config); err != nil {
		t.Fatal(err)
	}
	if len(config.RootFS.DiffIDs) != len(top.Layers) {
		t.Fatalf("%s: %d diff ids for %d layers", repository, len(config.RootFS.DiffIDs), len(top.Layers))
	}
	var names []string
	for i, what := range top.Layers {
		plain := unpacked(t, what, fetch(t, prefix+"/blobs/"+what.Digest, what.Digest))
		if digestOf(plain) != config.RootFS.DiffIDs[i] {
			t.Fatalf("%s: layer %d unpacks to %s", repository, i, digestOf(plain))
		}
		for reader := tar.NewReader(bytes.NewReader(plain)); ; {
			header, err := reader.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, header.Name)
		}
	}
	return names
}

func TestEveryImageComesBackFromARealRegistryAsItWasPushed(t *testing.T) {
	images, err := everything(ingredients)
	if err != nil {
		t.Fatalf("run `make deps` first: %v", err)
	}
	base := startRegistry(t)
	target := newRegistry(base)
	if err := target.waitReady(context.Background(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := target.pushAll(context.Background(), images); err != nil {
		t.Fatal(err)
	}
	contents := map[string]string{}
	for _, one := range images {
		for _, tag := range one.tags {
			contents[one.repository] = strings.Join(pullBack(t, base, one.repository, tag), "\n")
		}
	}
	for repository, name := range map[string]string{
		own + "busybox":    "usr/sbin/httpd",
		own + "whiteouts":  "opaque/.wh..wh..opq",
		e2e + "nginx":      "usr/sbin/nginx",
		e2e + "nonewprivs": "nnp",
		e2e + "busybox":    "usr/bin/pgrep",
		"pause":            "pause",
		"library/busybox":  "lib64/",
		e2e + "httpd":      "usr/local/bin/httpd-foreground",
	} {
		if !strings.Contains(contents[repository], name) {
			t.Errorf("%s has no %s", repository, name)
		}
	}
}

func TestTheSameIngredientsMakeTheSameDigests(t *testing.T) {
	first, err := staticLayer(ingredients, true)
	if err != nil {
		t.Fatal(err)
	}
	second, err := staticLayer(ingredients, true)
	if err != nil {
		t.Fatal(err)
	}
	if first.diffID != second.diffID || digestOf(first.blob) != digestOf(second.blob) {
		t.Error("two builds of one layer differ")
	}
}

func TestEveryAppletIsAHardLinkToOneFile(t *testing.T) {
	done, err := staticLayer(ingredients, false)
	if err != nil {
		t.Fatal(err)
	}
	links := 0
	for reader := tar.NewReader(bytes.NewReader(done.blob)); ; {
		header, err := reader.Next()
		if err == io.EOF {
			break
		}
		if header.Typeflag == tar.TypeLink {
			links++
			if header.Linkname != "bin/busybox" {
				t.Errorf("%s links to %s", header.Name, header.Linkname)
			}
		}
	}
	if links < 200 {
		t.Errorf("only %d applets", links)
	}
}
