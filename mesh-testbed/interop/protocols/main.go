// Peers that know their protocols better than we do.
//
//	h2spec HOST PORT        every case of h2spec, as a JSON array of those that failed
//	grpc-server             gRPC's interop server; its first line says where it listens
//	grpc-client ADDR CASE   one case of gRPC's interop client; fails if the case does
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("which peer?")
	}
	switch os.Args[1] {
	case "h2spec":
		h2spec(os.Args[2], os.Args[3])
	case "grpc-server":
		server()
	case "grpc-client":
		client(os.Args[2], os.Args[3])
	default:
		log.Fatalf("no such peer: %s", os.Args[1])
	}
}

type result struct {
	Case  string `json:"case"`
	Error string `json:"error"`
}

type report struct {
	Passed int      `json:"passed"`
	Failed []result `json:"failed"`
}

func h2spec(host, port string) {
	number, err := strconv.Atoi(port)
	if err != nil {
		log.Fatal(err)
	}
	// It tells of each case on the standard output.
	output := os.Stdout
	os.Stdout, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		log.Fatal(err)
	}
	c := &config.Config{
		Host:         host,
		Port:         number,
		Path:         "/",
		Timeout:      2 * time.Second,
		MaxHeaderLen: 4000,
	}
	told := report{Failed: []result{}}
	for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		group.Test(c)
		collect(group, &told)
	}
	if err := json.NewEncoder(output).Encode(told); err != nil {
		log.Fatal(err)
	}
}

func collect(group *spec.TestGroup, told *report) {
	told.Passed += passed(group)
	for i, test := range group.Tests {
		if test.Result != nil && test.Result.Failed {
			name := fmt.Sprintf("%s/%d %s", group.ID(), i+1, test.Desc)
			told.Failed = append(told.Failed, result{Case: name, Error: fmt.Sprint(test.Result.Error)})
		}
	}
	for _, inner := range group.Groups {
		collect(inner, told)
	}
}

func passed(group *spec.TestGroup) int {
	count := 0
	for _, test := range group.Tests {
		if test.Result != nil && !test.Result.Failed && !test.Result.Skipped {
			count++
		}
	}
	return count
}

func server() {
	listener, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		log.Fatal(err)
	}
	s := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(s, interop.NewTestServer())
	fmt.Printf("{\"listening\": %q}\n", listener.Addr())
	log.Fatal(s.Serve(listener))
}

func client(address, name string) {
	connection, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	service := testgrpc.NewTestServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	switch name {
	case "empty_unary":
		interop.DoEmptyUnaryCall(ctx, service)
	case "large_unary":
		interop.DoLargeUnaryCall(ctx, service)
	case "client_streaming":
		interop.DoClientStreaming(ctx, service)
	case "server_streaming":
		interop.DoServerStreaming(ctx, service)
	case "ping_pong":
		interop.DoPingPong(ctx, service)
	case "empty_stream":
		interop.DoEmptyStream(ctx, service)
	case "timeout_on_sleeping_server":
		interop.DoTimeoutOnSleepingServer(ctx, service)
	case "cancel_after_begin":
		interop.DoCancelAfterBegin(ctx, service)
	case "cancel_after_first_response":
		interop.DoCancelAfterFirstResponse(ctx, service)
	case "custom_metadata":
		interop.DoCustomMetadata(ctx, service)
	case "status_code_and_message":
		interop.DoStatusCodeAndMessage(ctx, service)
	case "special_status_message":
		interop.DoSpecialStatusMessage(ctx, service)
	case "unimplemented_method":
		interop.DoUnimplementedMethod(ctx, connection)
	case "unimplemented_service":
		interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(connection))
	default:
		log.Fatalf("no such case: %s", name)
	}
}
