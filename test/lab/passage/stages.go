package passage

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/godwit-cni/godwit/pkg/api/v1alpha1"
	"github.com/godwit-cni/godwit/test/lab/guest"
	"github.com/godwit-cni/godwit/test/lab/timeline"
)

// Stages are all that is known, by whoever knows it first hand.
func (p *Passage) Stages() []timeline.Stage {
	all := append(slices.Clone(p.Watched), p.qemuStages()...)
	return append(append(all, p.controllerStages()...), p.agentStages()...)
}

// qemuStages are from the journal. That QEMU stops the VM and lets it run again, the timeline adds itself.
func (p *Passage) qemuStages() []timeline.Stage {
	var all []timeline.Stage
	for _, e := range p.Journal {
		var name string
		switch onTarget := e.Node == p.Target; {
		case e.Event == string(guest.QEMUStarted) && onTarget:
			name = "QEMU waits on the target"
		case e.Event == string(guest.MigrationChanged) && e.Status == string(guest.Active) && !onTarget:
			name = "memory copy begins"
		case e.Event == string(guest.QEMUEnded) && !onTarget:
			name = "QEMU ends on the source"
		default:
			continue
		}
		all = append(all, timeline.Stage{At: e.Time, Actor: timeline.QEMU, Name: name, Detail: e.Pod})
	}
	return all
}

// controllerStages are from the migration's record.
func (p *Passage) controllerStages() []timeline.Stage {
	both := fmt.Sprintf("requested-chassis=%s,%s activation-strategy=rarp", p.Source, p.Target)
	known := map[v1alpha1.StageName]timeline.Stage{
		v1alpha1.StageScheduled:  {Actor: timeline.Controller, Name: "target node known", Detail: p.Target},
		v1alpha1.StagePrepared:   {Actor: timeline.Controller, Name: "ports prepared", Detail: both},
		v1alpha1.StageActivated:  {Actor: timeline.OVN, Name: "target activated", Detail: "when the controller saw it in the southbound database"},
		v1alpha1.StageReady:      {Actor: timeline.Controller, Name: "readiness known"},
		v1alpha1.StageCommitted:  {Actor: timeline.Controller, Name: "ports committed", Detail: "requested-chassis=" + p.Target},
		v1alpha1.StageRolledBack: {Actor: timeline.Controller, Name: "ports rolled back", Detail: "requested-chassis=" + p.Source},
		v1alpha1.StageCompleted:  {Actor: timeline.Controller, Name: "migration over"},
	}
	var all []timeline.Stage
	for _, s := range p.Record.Status.Stages {
		if stage, ok := known[s.Name]; ok {
			stage.At = s.Time.Time
			all = append(all, stage)
		}
	}
	return all
}

// agentStages are what the agents of both nodes saw at the port's links.
func (p *Passage) agentStages() []timeline.Stage {
	var all []timeline.Stage
	add := func(at *metav1.MicroTime, actor timeline.Actor, name, detail string) {
		if at != nil {
			all = append(all, timeline.Stage{At: at.Time, Actor: actor, Name: name, Detail: detail})
		}
	}
	if o := p.Record.Status.Source; o != nil {
		add(o.LastFrame, timeline.Agent, "last frame on the source", p.Source)
		add(o.Stopped, timeline.Agent, "the source's agent knows of the stop", p.Source)
	}
	if o := p.Record.Status.Target; o != nil {
		announced := "the VM announces itself"
		if o.AnnouncedByAgent {
			announced = "the agent announces the VM"
		}
		add(o.Attached, timeline.OVN, "port installed on the target", p.Target)
		add(o.Opened, timeline.Agent, "the target's agent opens the port", p.Target)
		add(o.Announced, timeline.Agent, announced, "RARP on "+p.Target)
		add(o.FirstFrame, timeline.Agent, "first frame on the target", p.Target)
	}
	return all
}
