//go:build !linux

package levee

import (
	"context"
	"errors"
)

type packing struct{}

type record struct{}

func (*Server) pack(context.Context, []*Conn) []*Parcel { return nil }
func (*Server) adopt([]byte, []int) (*Adopted, error)   { return nil, errors.ErrUnsupported }
func (*Adopted) begin()                                 {}
func (*Adopted) drop()                                  {}
func (*Conn) stepAside() error                          { return nil }
func (*Conn) leavesElsewhere() bool                     { return false }
