// The real go-control-plane server library, steered by a test over HTTP.
//
//	PUT  /snapshot?node=ID  {"version": "1", "resources": [{"@type": ..., ...}]}
//	GET  /log               every request the server got, as a JSON array
//
// The first line of its output says where both ends listen.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
)

type entry struct {
	Type     string   `json:"type"`
	Names    []string `json:"names"`
	GivenUp  []string `json:"given_up"`
	Nonce    string   `json:"nonce"`
	Version  string   `json:"version"`
	Error    string   `json:"error"`
	Held     int      `json:"held"`
	Node     string   `json:"node"`
	Variant  string   `json:"variant"`
	StreamID int64    `json:"stream"`
}

type journal struct {
	mutex   sync.Mutex
	entries []entry
}

func (j *journal) add(e entry) {
	j.mutex.Lock()
	defer j.mutex.Unlock()
	j.entries = append(j.entries, e)
}

func (j *journal) callbacks() server.Callbacks {
	return server.CallbackFuncs{
		StreamRequestFunc: func(id int64, r *discovery.DiscoveryRequest) error {
			j.add(entry{Type: r.GetTypeUrl(), Names: r.GetResourceNames(), Nonce: r.GetResponseNonce(),
				Version: r.GetVersionInfo(), Error: r.GetErrorDetail().GetMessage(),
				Node: r.GetNode().GetId(), Variant: "sotw", StreamID: id})
			return nil
		},
		StreamDeltaRequestFunc: func(id int64, r *discovery.DeltaDiscoveryRequest) error {
			j.add(entry{Type: r.GetTypeUrl(), Names: r.GetResourceNamesSubscribe(),
				GivenUp: r.GetResourceNamesUnsubscribe(), Nonce: r.GetResponseNonce(),
				Error: r.GetErrorDetail().GetMessage(), Held: len(r.GetInitialResourceVersions()),
				Node: r.GetNode().GetId(), Variant: "delta", StreamID: id})
			return nil
		},
	}
}

type change struct {
	Version   string            `json:"version"`
	Resources []json.RawMessage `json:"resources"`
}

// snapshot makes the library's snapshot of resources that say their @type.
func (c change) snapshot() (*cache.Snapshot, error) {
	byType := map[string][]types.Resource{}
	for _, raw := range c.Resources {
		wrapped := &anypb.Any{}
		if err := protojson.Unmarshal(raw, wrapped); err != nil {
			return nil, fmt.Errorf("%s: %w", raw, err)
		}
		message, err := wrapped.UnmarshalNew()
		if err != nil {
			return nil, err
		}
		byType[wrapped.GetTypeUrl()] = append(byType[wrapped.GetTypeUrl()], message)
	}
	return cache.NewSnapshot(c.Version, byType)
}

func put(snapshots cache.SnapshotCache, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var wanted change
	if err == nil {
		err = json.Unmarshal(body, &wanted)
	}
	var snapshot *cache.Snapshot
	if err == nil {
		snapshot, err = wanted.snapshot()
	}
	if err == nil {
		err = snapshots.SetSnapshot(r.Context(), r.URL.Query().Get("node"), snapshot)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

// node identifies clients by their id.
type node struct{}

func (node) ID(n *core.Node) string { return n.GetId() }

func main() {
	xds := flag.String("xds", "127.0.0.1:0", "where xDS is served")
	control := flag.String("control", "127.0.0.1:0", "where the test steers")
	flag.Parse()
	log.SetOutput(os.Stderr)

	snapshots := cache.NewSnapshotCache(true, node{}, nil)
	requests := &journal{}
	grpcServer := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer,
		server.NewServer(context.Background(), snapshots, requests.callbacks()))

	mux := http.NewServeMux()
	mux.HandleFunc("PUT /snapshot", func(w http.ResponseWriter, r *http.Request) { put(snapshots, w, r) })
	mux.HandleFunc("GET /log", func(w http.ResponseWriter, r *http.Request) {
		requests.mutex.Lock()
		defer requests.mutex.Unlock()
		_ = json.NewEncoder(w).Encode(requests.entries)
	})
	xdsListener, err := net.Listen("tcp", *xds)
	if err != nil {
		log.Fatal(err)
	}
	controlListener, err := net.Listen("tcp", *control)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("{\"listening\": %q, \"control\": %q}\n", xdsListener.Addr(), controlListener.Addr())
	go func() { log.Fatal(http.Serve(controlListener, mux)) }()
	log.Fatal(grpcServer.Serve(xdsListener))
}
