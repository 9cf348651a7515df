package admin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/prometheus/client_golang/prometheus"
)

var update = flag.Bool("update", false, "write openapi.json anew")

// An operation is what the document says of a route beyond its pattern.
type operation struct {
	summary string
	query   []string // parameters
	body    any      // of the request; nil for none
	status  int      // of the answer
	answer  any      // nil for none; text for what is no JSON
	fails   []int
}

type text string // a media type

var pageQuery = append([]string{"sort", "limit", "after"}, filterQuery...)

var filterQuery = []string{"listener", "route", "upstream", "server", "phase", "client"}

// aBan is what is sent for one.
type aBan struct {
	Prefix string `json:"prefix"`
	For    string `json:"for"`
	Why    string `json:"why,omitempty"`
}

// failure is how it is said that something was not done.
type failure struct {
	Error string `json:"error"`
}

var operations = map[string]operation{
	"GET /metrics": {summary: "Metrics, as Prometheus reads them.", status: 200, answer: text("text/plain")},
	"GET /livez":   {summary: "Whether levee lives. It needs no token.", status: 200, answer: text("text/plain")},
	"GET /readyz":  {summary: "Whether levee takes new connections: not while it starts or drains. It needs no token.", status: 200, answer: text("text/plain"), fails: []int{503}},

	"GET /api/v1/status":                                     {summary: "How it goes, at one look.", status: 200, answer: Status{}},
	"GET /api/v1/listeners":                                  {summary: "The listeners with their counts.", status: 200, answer: Listeners{}},
	"GET /api/v1/upstreams":                                  {summary: "The upstreams with their servers.", status: 200, answer: Upstreams{}},
	"GET /api/v1/connections":                                {summary: "A page of the open connections. Those that stay where they are in the order are on one page each, whoever comes and goes.", query: pageQuery, status: 200, answer: Connections{}, fails: []int{400}},
	"DELETE /api/v1/connections":                             {summary: "Ends the connections that all filters match, of which there must be one at least.", query: filterQuery, status: 200, answer: Ended{}, fails: []int{400}},
	"GET /api/v1/connections/{id}":                           {summary: "An open connection.", status: 200, answer: Connection{}, fails: []int{400, 404}},
	"DELETE /api/v1/connections/{id}":                        {summary: "Ends a connection.", status: 200, answer: Ended{}, fails: []int{400, 404}},
	"POST /api/v1/upstreams/{name}/servers/{server}/drain":   {summary: "Has a server get no new connections. Those that it has go on.", body: struct{}{}, status: 204, fails: []int{404, 415}},
	"POST /api/v1/upstreams/{name}/servers/{server}/undrain": {summary: "Has a server get connections again.", body: struct{}{}, status: 204, fails: []int{404, 415}},
	"GET /api/v1/config":                                     {summary: "The configuration in force, with every default written out and without secrets: as JSON with its generation, or alone.", query: []string{"format"}, status: 200, answer: Config{}, fails: []int{400}},
	"POST /api/v1/drain":                                     {summary: "Begins the end, as SIGTERM does: new connections are refused, open ones may finish. A second one changes nothing.", body: struct{}{}, status: 202, answer: Status{}, fails: []int{415}},
	"POST /api/v1/reload":                                    {summary: "Puts in force what the files say now, as SIGHUP does. If it fails, what was in force before is kept.", body: struct{}{}, status: 200, answer: Generation{}, fails: []int{415, 422, 501}},
	"POST /api/v1/upgrade":                                   {summary: "Has a new process take the place of this one, with the open connections, as SIGUSR2 does. If it fails, this process goes on.", body: struct{}{}, status: 200, answer: Upgrade{}, fails: []int{409, 415, 422, 501}},
	"GET /api/v1/events":                                     {summary: "What happens, as server-sent events, each an Event in JSON. An event named lost says how many the reader was too slow for.", query: []string{"after"}, status: 200, answer: text("text/event-stream"), fails: []int{400, 503}},
	"GET /api/v1/openapi.json":                               {summary: "This document.", status: 200, answer: text("application/json")},
	"GET /api/v1/limits":                                     {summary: "What limits have decided.", status: 200, answer: Limits{}},
	"GET /api/v1/overload":                                   {summary: "What is short, and what is done about it.", status: 200, answer: Overload{}},
	"GET /api/v1/bans":                                       {summary: "Who is kept out.", status: 200, answer: Bans{}},
	"POST /api/v1/bans":                                      {summary: "Keeps the clients of a prefix out for a while.", body: aBan{}, status: 201, answer: Ban{}, fails: []int{400, 413, 415}},
	"DELETE /api/v1/bans/{prefix...}":                        {summary: "Ends a ban.", status: 204, fails: []int{400, 404}},
}

var parameters = map[string]string{
	"id": "A connection's number.", "name": "An upstream.", "server": "A server of it; as a filter, one that connections go to.",
	"prefix": "An address or a prefix, whose slash may be escaped or not.",
	"sort":   "id, accepted, in, out, idle or client, with a - before it for the other way round. Without it, id.",
	"limit":  "How many at most, from 1 to 1000. Without it, 100.", "after": "What came last: the next of the page before, or the number of an event (as the header Last-Event-ID does). Events begin with those to come without it, and with all that are remembered after 0.",
	"listener": "Only those of a listener.", "route": "Only those of a route.", "upstream": "Only those that go to an upstream.",
	"phase": "Only those that are arriving, serving or draining.", "client": "Only those of an address, or of a prefix.", "format": "json or yaml. Without it, json.",
}

type object = map[string]any

// document makes the document of the routes and of the types behind them.
func document(t *testing.T) []byte {
	t.Helper()
	w := writer{t: t, types: make(object), comments: comments(t)}
	paths := make(object)
	unused := maps.Clone(operations)
	for _, r := range patterns() {
		op, known := operations[r]
		if !known {
			t.Errorf("nothing is said of %s", r)
		}
		delete(unused, r)
		method, path, _ := strings.Cut(r, " ")
		path = strings.Replace(path, "...", "", 1)
		if paths[path] == nil {
			paths[path] = make(object)
		}
		paths[path].(object)[strings.ToLower(method)] = w.operation(path, &op)
	}
	for r := range unused {
		t.Errorf("there is no route %s", r)
	}
	w.schema(reflect.TypeFor[Event]())
	whole := object{
		"openapi": "3.1.1",
		"info":    object{"title": "levee", "version": "1", "description": "What operators may ask of a running levee, and have it do. Every answer that is no success has an error in it."},
		"paths":   paths,
		"components": object{
			"schemas": w.types,
			"securitySchemes": object{
				"bearer": object{"type": "http", "scheme": "bearer", "description": "The token of admin.token_file, if there is one."},
				"basic":  object{"type": "http", "scheme": "basic", "description": "The same, as the password of whatever user."},
			},
		},
		"security": []any{object{"bearer": []any{}}, object{"basic": []any{}}, object{}},
	}
	made, err := json.MarshalIndent(whole, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(made, '\n')
}

// patterns are those of all routes that there may be.
func patterns() (all []string) {
	s := new(Server)
	s.Log, s.Metrics = quiet(), prometheus.NewRegistry()
	for _, r := range append(s.table(), s.API.table(&s.streams)...) {
		all = append(all, r.pattern)
	}
	return all
}

type writer struct {
	t        *testing.T
	types    object
	comments map[string]string // of types and of Type.Field
}

func (w *writer) operation(path string, op *operation) object {
	made := object{"summary": op.summary}
	if path == "/livez" || path == "/readyz" {
		made["security"] = []any{}
	}
	var in []any
	add := func(name, where string) {
		if parameters[name] == "" {
			w.t.Errorf("nothing is said of the parameter %s", name)
		}
		kind := "string"
		if name == "id" || name == "limit" {
			kind = "integer"
		}
		in = append(in, object{"name": name, "in": where, "required": where == "path", "schema": object{"type": kind}, "description": parameters[name]})
	}
	for _, found := range regexp.MustCompile(`{(\w+)}`).FindAllStringSubmatch(path, -1) {
		add(found[1], "path")
	}
	for _, name := range op.query {
		add(name, "query")
	}
	if in != nil {
		made["parameters"] = in
	}
	if op.body != nil {
		made["requestBody"] = object{"required": reflect.TypeOf(op.body).NumField() > 0, "content": object{"application/json": object{"schema": w.schema(reflect.TypeOf(op.body))}}}
	}
	answers := object{fmt.Sprint(op.status): w.answer(op.status, op.answer)}
	for _, status := range append([]int{401, 403, 429}, op.fails...) {
		switch {
		case made["security"] != nil && status != 503 && status != 403:
		case made["security"] != nil || path == "/metrics":
			answers[fmt.Sprint(status)] = w.answer(status, text("text/plain"))
		default:
			answers[fmt.Sprint(status)] = w.answer(status, failure{})
		}
	}
	made["responses"] = answers
	return made
}

func (w *writer) answer(status int, what any) object {
	made := object{"description": http.StatusText(status)}
	switch what := what.(type) {
	case nil:
	case text:
		made["content"] = object{string(what): object{}}
	default:
		made["content"] = object{"application/json": object{"schema": w.schema(reflect.TypeOf(what))}}
	}
	return made
}

// schema returns that of a type; a struct with a name is among the components.
func (w *writer) schema(of reflect.Type) object {
	switch of.Kind() {
	case reflect.Pointer:
		return w.schema(of.Elem())
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int64, reflect.Uint64:
		return object{"type": "integer"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Slice:
		return object{"type": "array", "items": w.schema(of.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": w.schema(of.Elem())}
	case reflect.Struct:
		return w.structure(of)
	}
	w.t.Fatalf("there is no schema for %v", of)
	return nil
}

func (w *writer) structure(of reflect.Type) object {
	if of == reflect.TypeFor[time.Time]() {
		return object{"type": "string", "format": "date-time"}
	}
	name := strings.ToUpper(of.Name()[:min(1, len(of.Name()))]) + of.Name()[min(1, len(of.Name())):]
	ref := object{"$ref": "#/components/schemas/" + name}
	if w.types[name] != nil {
		return ref
	}
	made := object{"type": "object"}
	if name != "" {
		w.types[name] = made
	}
	if said := w.comments[of.Name()]; said != "" {
		made["description"] = said
	}
	properties, required := make(object), []any{}
	w.fields(of, properties, &required)
	if len(properties) > 0 {
		made["properties"] = properties
	}
	if len(required) > 0 {
		made["required"] = required
	}
	if name == "" {
		return made
	}
	return ref
}

func (w *writer) fields(of reflect.Type, properties object, required *[]any) {
	for f := range of.Fields() {
		if f.Anonymous {
			w.fields(f.Type, properties, required)
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			w.t.Errorf("%s.%s has no name in JSON", of.Name(), f.Name)
		}
		schema := w.schema(f.Type)
		if said := w.comments[of.Name()+"."+f.Name]; said != "" {
			schema["description"] = said
		}
		properties[name] = schema
		if options == "" {
			*required = append(*required, name)
		}
	}
}

// comments are what the source says of types and of their fields.
func comments(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, file := range []string{"api.go", "views.go", "openapi_test.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range parsed.Decls {
			g, ok := decl.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			spec := g.Specs[0].(*ast.TypeSpec)
			name := spec.Name.Name
			all[name] = oneLine(g.Doc)
			s, ok := spec.Type.(*ast.StructType)
			if !ok {
				continue
			}
			for _, f := range s.Fields.List {
				for _, field := range f.Names {
					all[name+"."+field.Name] = cmp.Or(oneLine(f.Doc), oneLine(f.Comment))
				}
			}
		}
	}
	return all
}

func oneLine(c *ast.CommentGroup) string { return strings.Join(strings.Fields(c.Text()), " ") }

func TestTheOpenAPIDocumentSaysWhatThereIsAndNothingElse(t *testing.T) {
	want := document(t)
	if *update {
		if err := os.WriteFile("openapi.json", want, 0o644); err != nil { //nolint:gosec // it is for everybody
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(want, openAPIDocument) {
		t.Error("openapi.json is not of these routes and types; go test ./internal/admin -run OpenAPI -update writes it anew")
	}
}

// The document is made by this file, so something else has to look at whether it is true: each answer, in which there is
// everything that there can be, against its schema, which is to know of nothing more.
func TestAnswersAreAsTheOpenAPIDocumentSays(t *testing.T) {
	var whole struct {
		Paths map[string]map[string]struct {
			Responses map[string]struct {
				Content map[string]struct{ Schema *jsonschema.Schema }
			}
		}
		Components struct{ Schemas map[string]*jsonschema.Schema }
	}
	if err := json.Unmarshal(bytes.ReplaceAll(openAPIDocument, []byte("#/components/schemas/"), []byte("#/$defs/")), &whole); err != nil {
		t.Fatal(err)
	}
	for _, s := range whole.Components.Schemas {
		if s.Properties != nil {
			s.AdditionalProperties = &jsonschema.Schema{Not: &jsonschema.Schema{}}
			s.Required = slices.Collect(maps.Keys(s.Properties)) // as this API leaves nothing out
		}
	}
	s := &Server{API: filledAPI(), Log: quiet(), Metrics: prometheus.NewRegistry()}
	handler := s.guard(s.routes())
	checked := 0
	for path, methods := range whole.Paths {
		for method, op := range methods {
			for status, answer := range op.Responses {
				schema := answer.Content["application/json"].Schema
				if schema == nil || status[0] != '2' {
					continue
				}
				body := "{}"
				if path == "/api/v1/bans" {
					body = `{"prefix": "192.0.2.1", "for": "1m"}`
				}
				r := httptest.NewRequest(strings.ToUpper(method), strings.NewReplacer("{id}", "7").Replace(path), strings.NewReader(body))
				r.Host = "localhost"
				r.Header.Set("Content-Type", "application/json")
				if path == "/api/v1/connections" && method == "delete" {
					r.URL.RawQuery = "listener=main"
				}
				got := httptest.NewRecorder()
				handler.ServeHTTP(got, r)
				var value any
				if err := json.Unmarshal(got.Body.Bytes(), &value); err != nil || fmt.Sprint(got.Code) != status {
					t.Errorf("%s %s: %d %s", method, path, got.Code, got.Body)
					continue
				}
				schema.Defs = whole.Components.Schemas
				resolved, err := schema.Resolve(nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := resolved.Validate(value); err != nil {
					t.Errorf("%s %s: %v\n%s", method, path, err, got.Body)
				}
				checked++
			}
		}
	}
	if checked < 14 {
		t.Errorf("only %d answers were looked at", checked)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// filledAPI leaves no field out of what it answers.
func filledAPI() API {
	return API{
		Status: filled[Status], Listeners: filled[Listeners], Upstreams: filled[Upstreams], Config: filled[Config],
		Limits: filled[Limits], Overload: filled[Overload], Events: new(Feed),
		Connections: func(Query) (Connections, error) { return filled[Connections](), nil },
		Connection:  func(uint64) (Connection, bool) { return filled[Connection](), true },
		End:         func(uint64) bool { return true },
		EndAll:      func(Query) (int, error) { return 1, nil },
		DrainServer: func(string, string, bool) bool { return true },
		Drain:       filled[Status],
		Reload:      func(context.Context) (Generation, error) { return filled[Generation](), nil },
		Upgrade:     func(context.Context) (Upgrade, error) { return filled[Upgrade](), nil },
		Bans:        func(int) Bans { return filled[Bans]() },
		Ban:         func(string, time.Duration, string) (Ban, error) { return filled[Ban](), nil },
		Lift:        func(string) (bool, error) { return true, nil },
	}
}

func filled[T any]() (v T) {
	fill(reflect.ValueOf(&v).Elem())
	return v
}

func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint64:
		v.SetUint(1)
	case reflect.Float64:
		v.SetFloat(1.5)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		of := reflect.New(v.Type().Elem()).Elem()
		fill(of)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("x"), of)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1_800_000_000, 0).UTC()))
			return
		}
		for _, f := range v.Fields() {
			fill(f)
		}
	}
}
