module quilt.dev/hack/images

go 1.22
