package policy

import (
	"github.com/godwit-cni/godwit/pkg/nbdb"
)

// LogAnnotation is the annotation of a NetworkPolicy that asks for log lines of ovn-controller under the policy's name: LogDrop, LogAllow or LogAll. It is on the
// policy and not on its namespace, so that one policy can be looked into without the noise of others.
const LogAnnotation = "godwit.dev/policy-log"

// Values of LogAnnotation.
const (
	// LogDrop logs what the pods that the policy selects lose in the directions that it isolates, whichever policy would have had to permit it.
	LogDrop = "drop"
	// LogAllow logs what the policy permits.
	LogAllow = "allow"
	// LogAll logs both.
	LogAll = "all"
)

// LogMeter is the name of the meter that bounds the log of all policies on one node together (Meter). Without its row OVN logs every packet.
const LogMeter = "godwit_np_log"

// logRate is in lines a second, on each node: ovn-controller has other work too.
const logRate = 50

// logging is what LogAnnotation says.
type logging struct{ allow, drop bool }

func (p *parser) parseLog(annotations map[string]string) logging {
	switch v, ok := annotations[LogAnnotation]; {
	case !ok, v == "":
		return logging{}
	case v == LogDrop:
		return logging{drop: true}
	case v == LogAllow:
		return logging{allow: true}
	case v == LogAll:
		return logging{allow: true, drop: true}
	default:
		p.problem(ReasonInvalidLog, "metadata.annotations["+LogAnnotation+"]", "%q: want drop, allow or all; nothing is logged", v)
		return logging{}
	}
}

// logged makes an ACL log.
func logged(a *nbdb.ACL) {
	meter, severity := LogMeter, nbdb.ACLSeverityInfo
	if a.Action == nbdb.ACLActionDrop {
		severity = nbdb.ACLSeverityWarning
	}
	a.Log, a.Meter, a.Severity = true, &meter, &severity
}
