package e2e

import (
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	sdk "github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// Grafana's own types for dashboards and for the panels and queries that come with it, generated from the schemas that it reads
// files by. In strict mode they mind a field that there is none of, a word that is none of a choice's, and a value of another type.
//
// There is no Grafana to be had as a Go module or a Debian package that the dashboard could be loaded by.
func TestGrafanasSchemaKnowsAllThatTheDashboardSays(t *testing.T) {
	plugins.RegisterDefaultPlugins()
	text := deployed(t, "grafana/levee.json")
	var d sdk.Dashboard                                                              //nolint:staticcheck // its successor is another form of file, which older Grafanas do not read
	if err := d.UnmarshalJSONStrict([]byte(text)); err != nil && err.Error() != "" { // it returns an empty list as an error
		t.Fatal(err)
	}
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
	if len(d.Panels) != len(dashboard(t).Panels) {
		t.Errorf("%d panels", len(d.Panels))
	}
}
