// Istiod without a cluster: Istio's own discovery server as a library, on
// configuration from files. Released istiod up to 1.29 starts this way by
// itself; later ones ask a cluster controller for namespaces and panic where
// there is none, so this program gives the server one over an empty,
// in-memory Kubernetes.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"reflect"
	"syscall"
	"time"
	"unsafe"

	"istio.io/istio/pilot/pkg/bootstrap"
	"istio.io/istio/pkg/cluster"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/config/mesh/meshwatcher"
	"istio.io/istio/pkg/kube"
	"istio.io/istio/pkg/kube/multicluster"
	"istio.io/istio/pkg/log"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "istiod:", err)
		os.Exit(1)
	}
}

func run() error {
	args := bootstrap.NewPilotArgs(func(p *bootstrap.PilotArgs) {
		p.ShutdownDuration = time.Second
		p.NetworksConfigFile = "none"
		p.ServerOptions.TLSOptions.TLSMinVersion = bootstrap.TLSMinVersion1_2
		p.RegistryOptions.KubeOptions.DomainSuffix = "cluster.local"
		p.RegistryOptions.KubeOptions.ClusterID = "Kubernetes"
	})
	flag.StringVar(&args.RegistryOptions.FileDir, "config-dir", "", "folder of Istio resources, watched")
	flag.StringVar(&args.MeshConfigFile, "mesh-config", "", "MeshConfig, watched")
	flag.StringVar(&args.ServerOptions.GRPCAddr, "grpc", "127.0.0.1:15010", "xDS in plaintext")
	flag.StringVar(&args.ServerOptions.SecureGRPCAddr, "secure-grpc", "127.0.0.1:15012", "xDS and the CA over TLS")
	flag.StringVar(&args.ServerOptions.HTTPAddr, "http", "127.0.0.1:8080", "readiness and debug pages")
	flag.StringVar(&args.ServerOptions.MonitoringAddr, "monitoring", "127.0.0.1:15014", "metrics")
	flag.Parse()

	options := log.DefaultOptions()
	// What is said on stdout is for the test.
	options.OutputPaths = []string{"stderr"}
	options.SetDefaultOutputLevel("all", log.ErrorLevel)
	if err := log.Configure(options); err != nil {
		return err
	}
	if err := args.Complete(); err != nil {
		return err
	}

	stop := make(chan struct{})
	client := kube.NewFakeClient()
	clusters := multicluster.NewController(multicluster.ControllerOptions{
		Client:          client,
		ClusterID:       cluster.ID("Kubernetes"),
		SystemNamespace: args.Namespace,
		MeshConfig:      meshwatcher.NewTestWatcher(mesh.DefaultMeshConfig()),
		Debugger:        args.KrtDebugger,
	})
	server, err := bootstrap.NewServer(args, func(s *bootstrap.Server) {
		set(s, "multiclusterController", clusters)
	})
	if err != nil {
		return fmt.Errorf("cannot make the discovery server: %w", err)
	}
	go client.RunAndWait(stop)
	if err := clusters.Run(stop); err != nil {
		return fmt.Errorf("cannot run the cluster controller: %w", err)
	}
	if err := server.Start(stop); err != nil {
		return fmt.Errorf("cannot start the discovery server: %w", err)
	}
	fmt.Println(`{"started": true}`)

	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGINT, syscall.SIGTERM)
	<-ended
	close(stop)
	server.WaitUntilCompletion()
	return nil
}

// set writes a field of the server that has no setter outside its package.
func set(server *bootstrap.Server, name string, value any) {
	field := reflect.ValueOf(server).Elem().FieldByName(name)
	if !field.IsValid() {
		panic("bootstrap.Server has no field " + name)
	}
	reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem().Set(reflect.ValueOf(value))
}
