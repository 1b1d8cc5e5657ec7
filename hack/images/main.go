// Images makes every image that Quilt's tests, demo and bench use, out of programs that are on this
// machine, and pushes them into a registry on loopback. It fetches nothing from anywhere.
//
//	images --registry http://127.0.0.1:5000 --programs DIR --shell FILE [REPOSITORY...]
//
// Without a repository it pushes all of them but quilt-test/large, which only the bench wants.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"time"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("images", flag.ContinueOnError)
	var p programs
	base := flags.String("registry", "", "address of the registry, as http://127.0.0.1:PORT")
	flags.StringVar(&p.busybox, "busybox", "/bin/busybox", "static busybox")
	flags.StringVar(&p.shell, "shell", "", "busybox whose shell looks commands up in PATH")
	flags.StringVar(&p.nginx, "nginx", "/usr/sbin/nginx", "nginx")
	flags.StringVar(&p.built, "programs", "", "directory with the built programs nnp and pause")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *base == "" || p.shell == "" || p.built == "" {
		return fmt.Errorf("--registry, --shell and --programs are needed")
	}
	images, err := everything(p)
	if err != nil {
		return err
	}
	if wanted := flags.Args(); len(wanted) > 0 {
		if slices.Contains(wanted, largeRepository) {
			made, err := large()
			if err != nil {
				return err
			}
			images = append(images, made)
		}
		images = slices.DeleteFunc(images, func(i image) bool {
			return !slices.Contains(wanted, i.repository)
		})
		if len(images) == 0 {
			return fmt.Errorf("no image in any of %v", wanted)
		}
	}
	target := newRegistry(*base)
	if err := target.waitReady(ctx, 10*time.Second); err != nil {
		return err
	}
	if err := target.pushAll(ctx, images); err != nil {
		return err
	}
	fmt.Printf("%d images pushed to %s\n", len(images), *base)
	return nil
}
