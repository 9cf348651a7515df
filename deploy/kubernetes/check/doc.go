// Package check tests the Kubernetes manifests and the Helm chart beside it. It has tests only.
package check
