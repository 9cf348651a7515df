//go:build !unix

package levee

import "errors"

const canReadDirectly = false

func readDirectly(uintptr, []byte) (int, error) { return 0, errors.ErrUnsupported }
