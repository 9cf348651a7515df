//go:build !linux && !darwin

package leveetest

import "errors"

func openFiles() ([]openFile, error) { return nil, errors.ErrUnsupported }

func (f openFile) describe() string { return "" }
