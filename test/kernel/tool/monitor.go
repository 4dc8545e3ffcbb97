package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/godwit-cni/godwit/pkg/hypervisor"
)

// What QEMU says on a monitor, a line each: when somebody comes, to the two commands that an agent has, and when it has stopped the VM.
const (
	qmpGreeting  = `{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":0}},"capabilities":[]}}`
	qmpDone      = `{"return":{}}`
	qmpMigrating = `{"return":{"status":"active"}}`
	qmpStop      = `{"event":"STOP","timestamp":{"seconds":0,"microseconds":0}}`
)

// monitor is QEMU's in a launcher's volume, while a migration takes the VM elsewhere. It says that the VM was stopped when it gets SIGUSR1, to who listens then. Like QEMU it talks to one at a time.
func monitor(ctx context.Context, volume string) error {
	if err := os.Chdir(volume); err != nil { // the path of a socket has its bound, which a pod's is over
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", hypervisor.QMPSocket)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	stops := make(chan os.Signal, 1)
	signal.Notify(stops, syscall.SIGUSR1)
	fmt.Println("waits")
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		if err := tell(conn, stops); err != nil {
			fmt.Println("left:", err)
		}
		_ = conn.Close()
	}
}

// tell talks to an agent until that has gone.
func tell(conn net.Conn, stops <-chan os.Signal) error {
	asked := bufio.NewScanner(conn)
	if _, err := fmt.Fprintln(conn, qmpGreeting); err != nil {
		return err
	}
	for _, answer := range []string{qmpDone, qmpMigrating} {
		if !asked.Scan() {
			return errors.Join(errors.New("it has asked for less than it should"), asked.Err())
		}
		if _, err := fmt.Fprintln(conn, answer); err != nil {
			return err
		}
	}
	fmt.Println("listened to")
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for asked.Scan() { // and says no more
		}
	}()
	for {
		select {
		case <-gone:
			return nil
		case <-stops:
			if _, err := fmt.Fprintln(conn, qmpStop); err != nil {
				return err
			}
			fmt.Println("stopped")
		}
	}
}
