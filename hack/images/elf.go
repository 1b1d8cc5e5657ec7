package main

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sort"
)

// libraryDirs is where Debian keeps shared libraries, by Go's name of the architecture.
func libraryDirs() []string {
	triplet := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH]
	return []string{"/lib/" + triplet, "/usr/lib/" + triplet, "/lib", "/usr/lib", "/lib64"}
}

// closure lists a program's interpreter and all shared libraries it is linked against, so that it
// runs where nothing else is. It reads the ELF headers and runs nothing.
func closure(program string) ([]string, error) {
	found := map[string]bool{}
	queue := []string{program}
	for len(queue) > 0 {
		file := queue[0]
		queue = queue[1:]
		needed, err := imports(file)
		if err != nil {
			return nil, fmt.Errorf("read what %s is linked against: %w", file, err)
		}
		for _, library := range needed {
			if !found[library] {
				found[library] = true
				queue = append(queue, library)
			}
		}
	}
	list := make([]string, 0, len(found))
	for library := range found {
		list = append(list, library)
	}
	sort.Strings(list)
	return list, nil
}

func imports(file string) ([]string, error) {
	binary, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer binary.Close()
	var needed []string
	for _, part := range binary.Progs {
		if part.Type == elf.PT_INTERP {
			name := make([]byte, part.Filesz)
			if _, err := part.ReadAt(name, 0); err != nil {
				return nil, err
			}
			needed = append(needed, string(name[:len(name)-1]))
		}
	}
	names, err := binary.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		library, err := locate(name)
		if err != nil {
			return nil, err
		}
		needed = append(needed, library)
	}
	return needed, nil
}

func locate(library string) (string, error) {
	for _, dir := range libraryDirs() {
		candidate := filepath.Join(dir, library)
		if _, err := os.Stat(candidate); err == nil {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("no %s in %v", library, libraryDirs())
}
