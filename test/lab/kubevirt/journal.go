package kubevirt

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/godwit-cni/godwit/test/lab/guest"
)

// Entry is a line of the stand-in's journal: what QEMU did, by the clock of its machine, and what the stand-in itself waits for.
type Entry struct {
	Time time.Time `json:"time"`
	// Event is the type of a guest.Event, with its Status and Detail, or EventRequest or EventHeld.
	Event  string `json:"event"`
	Status string `json:"status,omitempty"`
	Detail string `json:"detail,omitempty"`

	Namespace string    `json:"namespace"`
	VMI       string    `json:"vmi"`
	Pod       string    `json:"pod"`
	PodUID    types.UID `json:"podUID"`
	Node      string    `json:"node"`
}

// EventHeld is the event of a step that is not taken because somebody holds its stage: Detail names the stage. Pod and node are empty.
const EventHeld = "HELD"

// EventRequest is the event of a request that the stand-in made of a launcher; Detail has the request and why it failed, if it did.
const EventRequest = "REQUEST"

// journal is a file of entries. Nothing is decided by it: what cannot be written is lost.
type journal struct {
	mu sync.Mutex
	w  io.Writer
}

func (j *journal) write(dom *domain, e Entry) {
	if j.w == nil {
		return
	}
	e.Namespace, e.VMI, e.Pod, e.PodUID, e.Node = dom.vmi.Namespace, dom.vmi.Name, dom.pod.Name, dom.pod.UID, dom.pod.Spec.NodeName
	j.append(e)
}

// held writes that a VM's next step waits for somebody to release its stage.
func (j *journal) held(vmi types.NamespacedName, s Stage) {
	if j.w != nil {
		j.append(Entry{Time: time.Now(), Event: EventHeld, Detail: string(s), Namespace: vmi.Namespace, VMI: vmi.Name})
	}
}

func (j *journal) append(e Entry) {
	b, err := json.Marshal(e)
	if err != nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	_, _ = j.w.Write(append(b, '\n'))
}

// event writes an event of QEMU's or of its launcher's.
func (j *journal) event(dom *domain, e guest.Event) {
	j.write(dom, Entry{Time: e.At(), Event: string(e.Type), Status: string(e.Status), Detail: e.Detail})
}

// request writes how a request to a launcher ended.
func (j *journal) request(dom *domain, request string, err error) {
	if err != nil {
		request += ": " + err.Error()
	}
	j.write(dom, Entry{Time: time.Now(), Event: EventRequest, Detail: request})
}

// ReadJournal reads a journal that a stand-in may be writing; a last line that is not complete is left out. Without the file there are no entries.
func ReadJournal(path string) (entries []Entry, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal of QEMU's events: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for r := bufio.NewReader(f); ; {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the journal of QEMU's events: %w", err)
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("read the journal of QEMU's events in %s: %w", path, err)
		}
		entries = append(entries, e)
	}
}
