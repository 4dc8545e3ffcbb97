package suite

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// made is what the tests of this process have made and not removed yet.
var made inventory

// Remove calls remove when the test has ended, or when the process is told to end before: all that tests have made is removed then, and the process ends. It is called before that which is to be removed is made.
func Remove(t testing.TB, remove func()) {
	t.Helper()
	t.Cleanup(made.add(remove))
}

// inventory is what has to be removed. Its zero value is empty.
type inventory struct {
	mu      sync.Mutex
	removes map[int]func()
	next    int
	watch   sync.Once
}

// add returns what removes it, and takes it off the list. Nothing is added any more once the process has been told to end.
func (i *inventory) add(remove func()) (done func()) {
	i.watch.Do(func() {
		told := make(chan os.Signal, 1)
		signal.Notify(told, syscall.SIGINT, syscall.SIGTERM)
		go func() {
			<-told
			fmt.Fprintln(os.Stderr, interruption)
			i.clear()
			endChildren()
			os.Exit(interrupted) //nolint:forbidigo // nobody else hears of the signal
		}()
	})
	once := sync.OnceFunc(remove) // a test that ends meanwhile waits for the same removal
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.removes == nil {
		i.removes = map[int]func(){}
	}
	i.next++
	key := i.next
	i.removes[key] = once
	return func() {
		once()
		i.mu.Lock()
		defer i.mu.Unlock()
		delete(i.removes, key)
	}
}

// clear removes everything, and keeps the list locked for good.
func (i *inventory) clear() {
	i.mu.Lock()
	var all sync.WaitGroup
	for _, remove := range i.removes {
		all.Go(remove)
	}
	all.Wait()
}

const (
	childLooks = 20
	childPause = 50 * time.Millisecond
)

// endChildren kills the processes that this one has started and that are left: some are in process groups of their own, which Ctrl-C does not reach, and were being started when what has them was stopped.
func endChildren() {
	for range childLooks {
		children := childrenOf(os.Getpid())
		if len(children) == 0 {
			return
		}
		for _, pid := range children {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(childPause)
	}
}

// childrenOf lists the processes with that parent, those aside that have ended: proc(5), /proc/pid/stat.
func childrenOf(parent int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well-formed
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		stat := string(text)
		fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // the name before may hold anything
		if len(fields) < 2 || fields[0] == "Z" || fields[1] != strconv.Itoa(parent) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
