package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// registry speaks the push half of the OCI distribution specification over plain HTTP.
type registry struct {
	base   string // http://127.0.0.1:5000
	client *http.Client
}

func newRegistry(base string) *registry {
	return &registry{base: base, client: &http.Client{Timeout: time.Minute}}
}

// waitReady returns when the registry answers, at most for the given time.
func (r *registry) waitReady(ctx context.Context, bound time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	for {
		response, err := r.do(ctx, http.MethodGet, r.base+"/v2/", "", nil)
		if err == nil {
			response.Body.Close()
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("registry %s does not answer: %w", r.base, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// pushAll stores the images, a few at a time.
func (r *registry) pushAll(ctx context.Context, images []image) error {
	const workers = 4
	queue := make(chan image)
	failures := make(chan error, len(images))
	var group sync.WaitGroup
	for range workers {
		group.Add(1)
		go func() {
			defer group.Done()
			for next := range queue {
				if err := r.push(ctx, next); err != nil {
					failures <- fmt.Errorf("push %s: %w", next.repository, err)
				}
			}
		}()
	}
	for _, next := range images {
		queue <- next
	}
	close(queue)
	group.Wait()
	close(failures)
	return <-failures
}

func (r *registry) push(ctx context.Context, what image) error {
	stored, err := what.seal()
	if err != nil {
		return err
	}
	for _, part := range stored.blobs {
		if err := r.pushBlob(ctx, what.repository, part); err != nil {
			return err
		}
	}
	top := stored.manifests[len(stored.manifests)-1]
	for _, part := range stored.manifests {
		if err := r.pushManifest(ctx, what.repository, part.Digest, part); err != nil {
			return err
		}
	}
	for _, tag := range what.tags {
		if err := r.pushManifest(ctx, what.repository, tag, top); err != nil {
			return err
		}
	}
	return nil
}

func (r *registry) pushBlob(ctx context.Context, repository string, what blob) error {
	there := fmt.Sprintf("%s/v2/%s/blobs/%s", r.base, repository, what.Digest)
	if response, err := r.do(ctx, http.MethodHead, there, "", nil); err == nil {
		response.Body.Close()
		return nil
	}
	response, err := r.do(ctx, http.MethodPost, fmt.Sprintf("%s/v2/%s/blobs/uploads/", r.base, repository), "", nil)
	if err != nil {
		return err
	}
	response.Body.Close()
	location, err := response.Location()
	if err != nil {
		return err
	}
	query := location.Query()
	query.Set("digest", what.Digest)
	location.RawQuery = query.Encode()
	return r.put(ctx, location, "application/octet-stream", what.data)
}

func (r *registry) pushManifest(ctx context.Context, repository, name string, what blob) error {
	there, err := url.Parse(fmt.Sprintf("%s/v2/%s/manifests/%s", r.base, repository, name))
	if err != nil {
		return err
	}
	return r.put(ctx, there, what.MediaType, what.data)
}

func (r *registry) put(ctx context.Context, there *url.URL, contentType string, data []byte) error {
	response, err := r.do(ctx, http.MethodPut, there.String(), contentType, data)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

// do sends a request; an answer of 300 and above is an error.
func (r *registry) do(ctx context.Context, method, there, contentType string, data []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, there, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := r.client.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode >= 300 {
		defer response.Body.Close()
		said, _ := io.ReadAll(io.LimitReader(response.Body, 512))
		return nil, fmt.Errorf("%s %s: %s %s", method, there, response.Status, said)
	}
	return response, nil
}
