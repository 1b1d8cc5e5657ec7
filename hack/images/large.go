package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// largeRepository is pushed only when it is asked for: it takes a while to make.
const largeRepository = own + "large"

const (
	largeLayers = 5
	// largeLayerBytes is what one layer weighs before compression: about 40 MiB after it.
	largeLayerBytes = 120 << 20
	// largeFileBytes keeps one file from being a whole layer.
	largeFileBytes = 16 << 20
)

// large makes an image as a pull is measured with: five layers of this machine's own programs,
// libraries and documents, which compress as such things do.
func large() (image, error) {
	var files []string
	total := int64(0)
	// Sorted by name, so that the same machine makes the same image.
	err := filepath.WalkDir("/usr", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil
		}
		info, err := entry.Info()
		if err != nil || info.Size() > largeFileBytes {
			return nil
		}
		files = append(files, name)
		total += info.Size()
		if total > largeLayers*largeLayerBytes {
			return filepath.SkipAll
		}
		return nil
	})
	if err != nil {
		return image{}, fmt.Errorf("read /usr: %w", err)
	}
	if total < largeLayers*largeLayerBytes {
		return image{}, fmt.Errorf("/usr has %d MiB, and the image needs %d", total>>20, largeLayers*largeLayerBytes>>20)
	}
	layers := make([]layer, largeLayers)
	failures := make([]error, largeLayers)
	var group sync.WaitGroup
	for at, part := range split(files) {
		group.Add(1)
		go func() {
			defer group.Done()
			layers[at], failures[at] = largeLayer(part)
		}()
	}
	group.Wait()
	for _, err := range failures {
		if err != nil {
			return image{}, err
		}
	}
	return image{repository: largeRepository, tags: []string{"latest"}, format: oci, config: sh, layers: layers}, nil
}

// split cuts the list where a layer is full.
func split(files []string) [][]string {
	parts := make([][]string, largeLayers)
	weight, at := int64(0), 0
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			continue
		}
		parts[at] = append(parts[at], name)
		if weight += info.Size(); weight > largeLayerBytes && at < largeLayers-1 {
			weight, at = 0, at+1
		}
	}
	return parts
}

func largeLayer(files []string) (layer, error) {
	return single(func(w *layerWriter) {
		for _, name := range files {
			// A file that goes meanwhile is left out.
			if data, err := os.ReadFile(name); err == nil {
				w.file(strings.TrimPrefix(name, "/"), 0o644, data)
			}
		}
	})
}
