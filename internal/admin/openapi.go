package admin

import (
	_ "embed"
	"net/http"
)

// openAPIDocument describes the API in OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.1.html). A test makes it of the
// routes, and of the types that stand behind them.
//
//go:embed openapi.json
var openAPIDocument []byte

func openAPI(w http.ResponseWriter, r *http.Request) {
	if _, ok := asked(w, r); !ok {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openAPIDocument) // who asked is gone, or gets it
}
