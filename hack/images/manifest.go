package main

import (
	"encoding/json"
	"fmt"
	"runtime"
)

// format is the family of media types of an image.
type format int

const (
	oci    format = iota // OCI image specification 1.1
	docker               // Docker image manifest version 2, schema 2
)

// runConfig is the part of an image's configuration that says how it runs.
type runConfig struct {
	User       string            `json:"User,omitempty"`
	Env        []string          `json:"Env,omitempty"`
	Entrypoint []string          `json:"Entrypoint,omitempty"`
	Cmd        []string          `json:"Cmd,omitempty"`
	WorkingDir string            `json:"WorkingDir,omitempty"`
	Labels     map[string]string `json:"Labels,omitempty"`
	StopSignal string            `json:"StopSignal,omitempty"`
}

// image is one image of the catalogue, under one or more tags.
type image struct {
	repository string
	tags       []string
	format     format
	index      bool // served behind an index (or manifest list) with a second platform
	config     runConfig
	layers     []layer
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type descriptor struct {
	MediaType string    `json:"mediaType"`
	Digest    string    `json:"digest"`
	Size      int       `json:"size"`
	Platform  *platform `json:"platform,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        *descriptor  `json:"config,omitempty"`
	Layers        []descriptor `json:"layers,omitempty"`
	Manifests     []descriptor `json:"manifests,omitempty"`
}

// blob is something that is addressed by its digest.
type blob struct {
	descriptor
	data []byte
}

// sealed is an image as a registry stores it: blobs, then the manifests, the one to be tagged last.
type sealed struct {
	blobs     []blob
	manifests []blob
}

func (f format) manifestType() string {
	return pick(f, "application/vnd.oci.image.manifest.v1+json",
		"application/vnd.docker.distribution.manifest.v2+json")
}

func (f format) indexType() string {
	return pick(f, "application/vnd.oci.image.index.v1+json",
		"application/vnd.docker.distribution.manifest.list.v2+json")
}

func (f format) configType() string {
	return pick(f, "application/vnd.oci.image.config.v1+json",
		"application/vnd.docker.container.image.v1+json")
}

func (f format) layerType(compressed bool) string {
	if compressed {
		return pick(f, "application/vnd.oci.image.layer.v1.tar+gzip",
			"application/vnd.docker.image.rootfs.diff.tar.gzip")
	}
	return pick(f, "application/vnd.oci.image.layer.v1.tar",
		"application/vnd.docker.image.rootfs.diff.tar")
}

func pick(f format, ociType, dockerType string) string {
	if f == oci {
		return ociType
	}
	return dockerType
}

// seal turns an image into what a registry stores.
func (i image) seal() (sealed, error) {
	own, err := i.sealFor(platform{Architecture: runtime.GOARCH, OS: "linux"}, i.layers)
	if err != nil || !i.index {
		return own, err
	}
	// A second platform that must not be chosen: it has no file to run.
	other := newLayer()
	other.text("not-your-platform", "s390x\n")
	foreign, err := other.finish(true)
	if err != nil {
		return sealed{}, err
	}
	second, err := i.sealFor(platform{Architecture: "s390x", OS: "linux"}, []layer{foreign})
	if err != nil {
		return sealed{}, err
	}
	list, err := encode(i.format.indexType(), manifest{
		SchemaVersion: 2,
		MediaType:     i.format.indexType(),
		Manifests:     []descriptor{second.manifests[0].descriptor, own.manifests[0].descriptor},
	})
	if err != nil {
		return sealed{}, err
	}
	return sealed{
		blobs:     append(own.blobs, second.blobs...),
		manifests: []blob{second.manifests[0], own.manifests[0], list},
	}, nil
}

func (i image) sealFor(where platform, layers []layer) (sealed, error) {
	var out sealed
	var diffIDs []string
	var described []descriptor
	for _, part := range layers {
		diffIDs = append(diffIDs, part.diffID)
		stored := blob{data: part.blob, descriptor: descriptor{
			MediaType: i.format.layerType(part.gzip), Digest: digestOf(part.blob), Size: len(part.blob),
		}}
		described = append(described, stored.descriptor)
		out.blobs = append(out.blobs, stored)
	}
	config, err := encode(i.format.configType(), map[string]any{
		"architecture": where.Architecture,
		"os":           where.OS,
		"created":      epoch,
		"config":       i.config,
		"rootfs":       map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return sealed{}, err
	}
	out.blobs = append(out.blobs, config)
	top, err := encode(i.format.manifestType(), manifest{
		SchemaVersion: 2,
		MediaType:     i.format.manifestType(),
		Config:        &config.descriptor,
		Layers:        described,
	})
	if err != nil {
		return sealed{}, err
	}
	top.Platform = &where
	out.manifests = []blob{top}
	return out, nil
}

func encode(mediaType string, value any) (blob, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return blob{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	return blob{data: data, descriptor: descriptor{
		MediaType: mediaType, Digest: digestOf(data), Size: len(data),
	}}, nil
}
