// Command cadvisor is the part of kubelet that watches cgroups: the same library, asked for what it
// has found at and below one cgroup, which it prints as a line of JSON again and again. It ends with
// whoever reads it.
package main

import (
	"encoding/json"
	"flag"
	"log"
	"os"
	"strings"
	"time"

	"github.com/google/cadvisor/lib/cache/memory"
	"github.com/google/cadvisor/lib/container"
	_ "github.com/google/cadvisor/lib/container/containerd/install"
	"github.com/google/cadvisor/lib/manager"
	"github.com/google/cadvisor/lib/model"
	"github.com/google/cadvisor/lib/utils/sysfs"
)

type found struct {
	Name    string            `json:"name"`
	Labels  map[string]string `json:"labels"`
	Image   string            `json:"image"`
	Network []string          `json:"network"`
}

func main() {
	// The library's own flags name the socket and its namespace.
	below := flag.String("below", "/", "the cgroup below which is looked")
	flag.Parse()
	interval, dynamic := time.Second, false
	watch := manager.HousekeepingConfig{Interval: &interval, AllowDynamic: &dynamic}
	metrics := container.MetricSet{
		container.CpuUsageMetrics:     {},
		container.MemoryUsageMetrics:  {},
		container.NetworkUsageMetrics: {},
	}
	cache := memory.New(time.Minute, nil)
	cadvisor, err := manager.New(cache, sysfs.NewRealSysFs(), watch, metrics, []string{*below}, nil, "", 0)
	if err != nil {
		log.Fatal(err)
	}
	if err := cadvisor.Start(); err != nil {
		log.Fatal(err)
	}
	for {
		// Best effort: what goes meanwhile is left out.
		options := model.RequestOptions{IdType: "name", Count: 1, Recursive: true}
		all, _ := cadvisor.GetContainerInfoV2("/", options)
		list := []found{}
		for name, one := range all {
			if strings.HasPrefix(name, *below) {
				list = append(list, describe(name, one))
			}
		}
		if json.NewEncoder(os.Stdout).Encode(list) != nil {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func describe(name string, one model.ContainerInfo) found {
	described := found{Name: name, Labels: one.Spec.Labels, Image: one.Spec.Image, Network: []string{}}
	if len(one.Stats) == 0 {
		return described
	}
	if network := one.Stats[len(one.Stats)-1].Network; network != nil {
		for _, iface := range network.Interfaces {
			if iface.TxBytes > 0 {
				described.Network = append(described.Network, iface.Name)
			}
		}
	}
	return described
}
