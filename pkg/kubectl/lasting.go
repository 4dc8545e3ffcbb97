package kubectl

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
)

// passingMark stands around what passing marks.
const passingMark = "\x00"

var passingPart = regexp.MustCompile(passingMark + "[^" + passingMark + "]*" + passingMark)

// passing marks a part of a verdict's finding that changes while the fault lasts: a time, a count, a program's words. Two looks are compared without it, and no reader sees the mark.
func passing(text string) string {
	return passingMark + strings.ReplaceAll(text, passingMark, "") + passingMark
}

// of is the line of a check that a verdict comes to.
func (v verdict) of(check string) line {
	l := line{Check: check, Grade: v.grade, Finding: strings.ReplaceAll(v.finding, passingMark, ""), Remedy: v.remedy}
	if l.Finding != v.finding {
		l.Lasts = passingPart.ReplaceAllString(v.finding, "")
	}
	return l
}

// same: both are of one fault, though the time or the count that they tell may not be.
func (l line) same(o line) bool {
	return l.Check == o.Check && l.Grade == o.Grade && cmp.Or(l.Lasts, l.Finding) == cmp.Or(o.Lasts, o.Finding)
}

// lasting is the second of two diagnoses without what the first did not find. A check of which nothing is left is well.
func lasting(first, second diagnosis) diagnosis {
	out := diagnosis{Time: second.Time}
	stayed := func(l line) bool { return slices.ContainsFunc(first.Checks, l.same) }
	for i, l := range second.Checks {
		if l.Grade == fine || stayed(l) {
			out.Checks = append(out.Checks, l)
			continue
		}
		others := slices.ContainsFunc(second.Checks, func(have line) bool { return have.Check == l.Check && stayed(have) })
		if last := i == len(second.Checks)-1 || second.Checks[i+1].Check != l.Check; last && !others {
			out.Checks = append(out.Checks, line{Check: l.Check, Grade: fine, Finding: "what differed was under way"})
		}
	}
	out.count()
	return out
}
