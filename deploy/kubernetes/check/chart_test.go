package check

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"

	"github.com/levee-net/levee/internal/app"
	"github.com/levee-net/levee/internal/config"
)

var update = flag.Bool("update", false, "write ../manifests anew")

const (
	chartFolder = "../chart"
	manifests   = "../manifests"
)

type values = map[string]any

// everything has all that is optional.
var everything = values{
	"autoscaling":    values{"enabled": true},
	"serviceMonitor": values{"enabled": true, "labels": values{"release": "prometheus"}},
	"tlsSecret":      "levee-tls",
	"service":        values{"type": "ClusterIP", "annotations": values{"example.com/of": "somebody"}},
	"nodeSelector":   values{"edge": "yes"},
	"tolerations":    []any{values{"key": "edge", "operator": "Exists"}},
}

// render returns what the chart makes of the values, by the names of its templates.
func render(t *testing.T, given values) map[string]string {
	t.Helper()
	chart, err := loader.Load(chartFolder)
	if err != nil {
		t.Fatal(err)
	}
	release := common.ReleaseOptions{Name: "levee", Namespace: "default", Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(chart, given, release, common.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	texts, err := engine.Engine{Strict: true}.RenderWithContext(t.Context(), chart, all)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for path, text := range texts {
		if name := filepath.Base(path); strings.HasSuffix(name, ".yaml") && strings.TrimSpace(text) != "" {
			files[name] = strings.TrimSpace(text) + "\n"
		}
	}
	return files
}

// typed is what kinds of the cluster's API are in Go.
func typed(kind string) any {
	return map[string]any{
		"ConfigMap":               &core.ConfigMap{},
		"Deployment":              &apps.Deployment{},
		"Service":                 &core.Service{},
		"PodDisruptionBudget":     &policy.PodDisruptionBudget{},
		"NetworkPolicy":           &networking.NetworkPolicy{},
		"HorizontalPodAutoscaler": &autoscaling.HorizontalPodAutoscaler{},
		"ServiceMonitor":          &monitoring.ServiceMonitor{},
	}[kind]
}

// decoded reads a manifest as the cluster does that is asked to be strict: what it does not know is an error.
func decoded[T any](t *testing.T, name, text string) *T {
	t.Helper()
	object, ok := decode(t, name, text).(*T)
	if !ok {
		t.Fatalf("%s is something else", name)
	}
	return object
}

func decode(t *testing.T, name, text string) any {
	t.Helper()
	var head struct{ Kind string }
	if err := yaml.Unmarshal([]byte(text), &head); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, text)
	}
	object := typed(head.Kind)
	if object == nil {
		t.Fatalf("%s: nothing is known of a %q", name, head.Kind)
	}
	if err := yaml.UnmarshalStrict([]byte(text), object); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, text)
	}
	return object
}

func TestChartRendersWhatTheAPIKnows(t *testing.T) {
	for name, given := range map[string]values{"as it is": {}, "with everything": everything} {
		t.Run(name, func(t *testing.T) {
			files := render(t, given)
			if len(files) < 6 {
				t.Errorf("only %d files", len(files))
			}
			for name, text := range files {
				decode(t, name, text)
			}
		})
	}
}

func TestFieldsThatTheAPIDoesNotKnowAreFound(t *testing.T) {
	text := strings.Replace(render(t, values{})["deployment.yaml"], "replicas:", "replica:", 1)
	if err := yaml.UnmarshalStrict([]byte(text), &apps.Deployment{}); err == nil {
		t.Error("replica: is taken for a field of a Deployment")
	}
}

func TestHelmFindsNothingWrongWithTheChart(t *testing.T) {
	for _, given := range []values{{}, everything} {
		for _, m := range lint.RunAll(chartFolder, given, "default").Messages {
			if m.Severity >= support.WarningSev {
				t.Error(m)
			}
		}
	}
}

// The manifests are what the chart makes of its own values, and of those files that are off then, of all that is optional.
func TestManifestsAreWhatTheChartMakes(t *testing.T) {
	files := render(t, values{})
	optional := render(t, values{"autoscaling": values{"enabled": true}, "serviceMonitor": values{"enabled": true}})
	for _, name := range []string{"horizontalpodautoscaler.yaml", "servicemonitor.yaml"} {
		files[name] = optional[name]
	}
	kustomization, err := os.ReadFile(filepath.Join(manifests, "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := filepath.Join(manifests, name)
		if *update {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if there, err := os.ReadFile(path); err != nil || string(there) != text {
			t.Errorf("%s is not what the chart makes (%v): go test -run %s -update", name, err, t.Name())
		}
		if !bytes.Contains(kustomization, []byte("- "+name+"\n")) {
			t.Errorf("%s is not named in kustomization.yaml", name)
		}
	}
	there, err := filepath.Glob(filepath.Join(manifests, "*.yaml"))
	if err != nil || len(there) != len(files)+1 {
		t.Errorf("%d files in %s, and %d of them are the chart's: %v", len(there), manifests, len(files), err)
	}
}

// configured is the configuration of the chart, with a token where the cluster would have it.
func configured(t *testing.T) (path string) {
	t.Helper()
	text := decoded[core.ConfigMap](t, "configmap.yaml", render(t, values{})["configmap.yaml"]).Data["levee.yaml"]
	folder := t.TempDir()
	token := filepath.Join(folder, "token")
	if !strings.Contains(text, "/run/secrets/levee/token") {
		t.Fatal("the configuration names no token")
	}
	text = strings.ReplaceAll(text, "/run/secrets/levee/token", token)
	path = filepath.Join(folder, "levee.yaml")
	for file, content := range map[string]string{token: strings.Repeat("0123456789abcdef", 4), path: text} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestLeveeTakesTheConfigurationOfTheConfigMap(t *testing.T) {
	var stdout, stderr bytes.Buffer
	env := app.Env{Stdout: &stdout, Stderr: &stderr, ConfigDir: func() (string, error) { return t.TempDir(), nil }}
	if code := app.Run(context.Background(), []string{"levee", "check", "-c", configured(t)}, env); code != 0 {
		t.Errorf("levee check: exit code %d: %s", code, &stderr)
	}
	if !strings.Contains(stdout.String(), "ok\n") {
		t.Errorf("levee check: %s", &stdout)
	}
}

func TestPodsAreGivenTheTimeThatTheyTakeToDrain(t *testing.T) {
	cfg, err := config.Load(configured(t))
	if err != nil {
		t.Fatal(err)
	}
	pod := decoded[apps.Deployment](t, "deployment.yaml", render(t, values{})["deployment.yaml"]).Spec.Template.Spec
	given := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second
	if takes := cfg.Drain.PreStop + cfg.Drain.Timeout; given <= takes || cfg.Drain.PreStop <= 0 {
		t.Errorf("a pod is given %v and takes %v, of which %v until nobody comes any more", given, takes, cfg.Drain.PreStop)
	}
}

func TestPortsAreThoseThatLeveeListensOn(t *testing.T) {
	cfg, err := config.Load(configured(t))
	if err != nil {
		t.Fatal(err)
	}
	listens := map[string]bool{cfg.Admin.Listen.String(): true}
	for _, l := range cfg.Listeners {
		for _, a := range l.Listen {
			listens[a.String()] = true
		}
	}
	files := render(t, values{})
	names := make(map[string]bool)
	for _, p := range decoded[apps.Deployment](t, "deployment.yaml", files["deployment.yaml"]).Spec.Template.Spec.Containers[0].Ports {
		if address := fmt.Sprintf(":%d", p.ContainerPort); !listens[address] {
			t.Errorf("the container has port %s, where levee does not listen", address)
		}
		names[p.Name] = true
	}
	if len(names) != len(listens) {
		t.Errorf("the container has %d ports, and levee listens on %d", len(names), len(listens))
	}
	for _, name := range []string{"service.yaml", "service-admin.yaml"} {
		for _, p := range decoded[core.Service](t, name, files[name]).Spec.Ports {
			if !names[p.TargetPort.StrVal] {
				t.Errorf("%s leads to %q, which the container does not have", name, p.TargetPort.StrVal)
			}
		}
	}
}

// https://kubernetes.io/docs/concepts/security/pod-security-standards/
func TestPodsKeepTheRestrictedStandard(t *testing.T) {
	for _, given := range []values{{}, everything} {
		pod := decoded[apps.Deployment](t, "deployment.yaml", render(t, given)["deployment.yaml"]).Spec.Template.Spec
		if s := pod.SecurityContext; !*s.RunAsNonRoot || *s.RunAsUser == 0 || s.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault {
			t.Errorf("the pod's security context is %+v", s)
		}
		if pod.HostNetwork || pod.HostPID || pod.HostIPC || *pod.AutomountServiceAccountToken {
			t.Error("the pod has something of its node or of the cluster")
		}
		for _, v := range pod.Volumes {
			if v.ConfigMap == nil && v.Secret == nil && v.EmptyDir == nil {
				t.Errorf("volume %s is of a kind that is not allowed", v.Name)
			}
		}
		for _, c := range pod.Containers {
			s := c.SecurityContext
			if *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || len(s.Capabilities.Add) > 0 || fmt.Sprint(s.Capabilities.Drop) != "[ALL]" {
				t.Errorf("the security context of container %s is %+v", c.Name, s)
			}
		}
	}
}

func TestSelectorsFindTheirPods(t *testing.T) {
	files := render(t, everything)
	deployment := decoded[apps.Deployment](t, "deployment.yaml", files["deployment.yaml"])
	labels := deployment.Spec.Template.Labels
	admin := decoded[core.Service](t, "service-admin.yaml", files["service-admin.yaml"])
	for what, selector := range map[string]map[string]string{
		"the deployment":     deployment.Spec.Selector.MatchLabels,
		"the service":        decoded[core.Service](t, "service.yaml", files["service.yaml"]).Spec.Selector,
		"the admin service":  admin.Spec.Selector,
		"the budget":         decoded[policy.PodDisruptionBudget](t, "budget", files["poddisruptionbudget.yaml"]).Spec.Selector.MatchLabels,
		"the network policy": decoded[networking.NetworkPolicy](t, "policy", files["networkpolicy.yaml"]).Spec.PodSelector.MatchLabels,
	} {
		if len(selector) == 0 || !within(selector, labels) {
			t.Errorf("%s selects %v, and pods have %v", what, selector, labels)
		}
	}
	monitor := decoded[monitoring.ServiceMonitor](t, "monitor", files["servicemonitor.yaml"])
	if selector := monitor.Spec.Selector.MatchLabels; !within(selector, admin.Labels) || within(selector, decoded[core.Service](t, "service", files["service.yaml"]).Labels) {
		t.Errorf("the monitor selects %v", selector)
	}
	scaled := decoded[autoscaling.HorizontalPodAutoscaler](t, "autoscaler", files["horizontalpodautoscaler.yaml"]).Spec
	if scaled.ScaleTargetRef.Name != deployment.Name || deployment.Spec.Replicas != nil {
		t.Errorf("the autoscaler is for %s, and %s has %v replicas of its own", scaled.ScaleTargetRef.Name, deployment.Name, deployment.Spec.Replicas)
	}
}

func within(some, all map[string]string) bool {
	for k, v := range some {
		if all[k] != v {
			return false
		}
	}
	return true
}
