// Sessions speaks to a URL that Exec, Attach or PortForward has answered, as kubectl does: with
// Kubernetes' own client library, over SPDY, over a WebSocket, or over a WebSocket with SPDY to fall
// back to. Where it falls back, a proxy in front refuses WebSockets, as an older API server does.
//
//	sessions exec    spdy|websocket|fallback URL       standard streams; exits as the command does
//	sessions forward spdy|websocket|fallback URL PORT  prints where it listens, until it is killed
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "sessions:", err)
		code = 125
	}
	os.Exit(code)
}

func run(arguments []string) (int, error) {
	if len(arguments) < 3 {
		return 0, errors.New("usage: sessions exec|forward spdy|websocket|fallback URL [PORT]")
	}
	where, err := url.Parse(arguments[2])
	if err != nil {
		return 0, err
	}
	transport := arguments[1]
	if transport == "fallback" {
		if where, err = withoutWebSocket(where); err != nil {
			return 0, err
		}
	}
	switch {
	case arguments[0] == "exec":
		return execute(transport, where)
	case arguments[0] == "forward" && len(arguments) == 4:
		return 0, forward(transport, where, arguments[3])
	}
	return 0, fmt.Errorf("%q is nothing to do", arguments)
}

// withoutWebSocket starts a proxy for the URL's host and returns the URL by way of it.
func withoutWebSocket(where *url.URL) (*url.URL, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: where.Scheme, Host: where.Host})
	refuse := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "websocket" {
			http.Error(w, "no WebSocket here", http.StatusForbidden)
			return
		}
		proxy.ServeHTTP(w, r)
	}
	go http.Serve(listener, http.HandlerFunc(refuse))
	proxied := *where
	proxied.Host = listener.Addr().String()
	return &proxied, nil
}

func execute(transport string, where *url.URL) (int, error) {
	config := &rest.Config{Host: where.Host}
	bySPDY, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, where)
	if err != nil {
		return 0, err
	}
	byWebSocket, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, where.String())
	if err != nil {
		return 0, err
	}
	fellBack := false
	executor := map[string]remotecommand.Executor{"spdy": bySPDY, "websocket": byWebSocket}[transport]
	if transport == "fallback" {
		executor, err = remotecommand.NewFallbackExecutor(byWebSocket, bySPDY, func(err error) bool {
			fellBack = httpstream.IsUpgradeFailure(err)
			return fellBack
		})
		if err != nil {
			return 0, err
		}
	}
	if executor == nil {
		return 0, fmt.Errorf("%q is no transport", transport)
	}
	streams := remotecommand.StreamOptions{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	err = executor.StreamWithContext(context.Background(), streams)
	if transport == "fallback" && !fellBack {
		return 0, errors.New("it did not fall back")
	}
	var exit exec.CodeExitError
	if errors.As(err, &exit) {
		return exit.Code, nil
	}
	return 0, err
}

func forward(transport string, where *url.URL, port string) error {
	config := &rest.Config{Host: where.Host}
	roundTripper, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return err
	}
	bySPDY := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, where)
	byWebSocket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(where, config)
	if err != nil {
		return err
	}
	dialer := map[string]httpstream.Dialer{"spdy": bySPDY, "websocket": byWebSocket}[transport]
	if transport == "fallback" {
		dialer = portforward.NewFallbackDialerForStreaming(byWebSocket, bySPDY, httpstream.IsUpgradeFailure)
	}
	if dialer == nil {
		return fmt.Errorf("%q is no transport", transport)
	}
	ready, never := make(chan struct{}), make(chan struct{})
	ports := []string{":" + port}
	forwarder, err := portforward.NewForStreaming(dialer, ports, never, ready, os.Stdout, io.Writer(os.Stderr))
	if err != nil {
		return err
	}
	return forwarder.ForwardPorts()
}
