package top

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/levee-net/levee/internal/admin"
)

// A filter is written as words, each of which names what is wanted, such as "client=10.0.0.0/8 phase=serving". An
// address or a prefix alone is a client's.

// filterFields are what can be asked for, in the order in which it is written.
func filterFields(q *admin.Query) []filterField {
	return []filterField{
		{"client", &q.Client},
		{"listener", &q.Listener},
		{"route", &q.Route},
		{"upstream", &q.Upstream},
		{"server", &q.Server},
		{"phase", &q.Phase},
	}
}

type filterField struct {
	name  string
	value *string
}

// parseFilter returns a query with nothing but what is asked for.
func parseFilter(text string) (q admin.Query, err error) {
	fields := filterFields(&q)
	for word := range strings.FieldsSeq(text) {
		name, value, named := strings.Cut(word, "=")
		if !named {
			name, value = "client", word
		}
		i := slices.IndexFunc(fields, func(f filterField) bool { return f.name == name })
		switch {
		case i < 0:
			return admin.Query{}, fmt.Errorf("there is no %q to filter by: client, listener, route, upstream, server, phase", name)
		case value == "":
			return admin.Query{}, fmt.Errorf("%s: what is missing is its value", name)
		case name == "client" && !isClient(value):
			return admin.Query{}, fmt.Errorf("%q is no address and no prefix; others are named, such as listener=main", value)
		case *fields[i].value != "":
			return admin.Query{}, fmt.Errorf("%s is there twice", name)
		}
		*fields[i].value = value
	}
	return q, nil
}

func isClient(text string) bool {
	if _, err := netip.ParseAddr(text); err == nil {
		return true
	}
	_, err := netip.ParsePrefix(text)
	return err == nil
}

// filterText is the filter that a query has.
func filterText(q admin.Query) string {
	var parts []string
	for _, f := range filterFields(&q) {
		if *f.value != "" {
			parts = append(parts, f.name+"="+*f.value)
		}
	}
	return strings.Join(parts, " ")
}
