// Command echoserver is in the lab's busybox image, also under the name probe.
//
//	echoserver [-tcp :7] [-udp :7] [-http :80] [-name NAME]     serves; an empty address serves nothing
//	probe [-timeout 2s] [-count 1] URL…                          asks tcp://, udp:// and http:// targets, prints a line for each
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/godwit-cni/godwit/test/lab/echo"
)

func main() { os.Exit(run()) } //nolint:forbidigo // main

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT) //nolint:forbidigo // main
	defer stop()
	if filepath.Base(os.Args[0]) == "probe" {
		return probe(ctx)
	}
	host, _ := os.Hostname()
	var c echo.Config
	flag.StringVar(&c.TCP, "tcp", ":7", "address of the TCP echo server")
	flag.StringVar(&c.UDP, "udp", ":7", "address of the UDP echo server")
	flag.StringVar(&c.HTTP, "http", ":80", "address of the HTTP server")
	flag.StringVar(&c.Name, "name", host, "name in HTTP answers")
	flag.Parse()
	if err := echo.Serve(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, "echoserver:", err)
		return 1
	}
	return 0
}

// probe's status is 1 when a target did not answer.
func probe(ctx context.Context) int {
	timeout := flag.Duration("timeout", 2*time.Second, "how long a target may take")
	count := flag.Int("count", 1, "how often each target is asked, one after another, until it fails")
	flag.Parse()
	status := 0
	for _, r := range slices.Concat(echo.ProbeTimes(ctx, *timeout, *count, flag.Args())...) {
		fmt.Println(r)
		if r.Err != nil {
			status = 1
		}
	}
	return status
}
