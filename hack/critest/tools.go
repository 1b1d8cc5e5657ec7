//go:build tools

// Package critest pins crictl and critest: `make deps` builds both from what go.mod names.
package critest

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/cmd/critest"
)
