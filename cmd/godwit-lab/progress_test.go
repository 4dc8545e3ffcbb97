package main

import (
	"bytes"
	"errors"
	"log/slog"
	"regexp"
	"testing"
)

func TestProgressIsForReaders(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newProgress(&out, slog.LevelInfo)).With("node", "node1")
	var none error
	log.Debug("not shown")
	log.Info("starting", "err", none)
	log.Warn("late", "err", errors.New("no answer"))
	want := regexp.MustCompile(`^ +0\.\ds  starting  node=node1\n +0\.\ds  warn: late  node=node1  err=no answer\n$`)
	if !want.Match(out.Bytes()) {
		t.Errorf("printed %q, want it to match %s", out.String(), want)
	}
}

func TestEveryCommandIsDocumented(t *testing.T) {
	for _, c := range newRoot().Commands() {
		if !c.Hidden && c.Short == "" {
			t.Errorf("command %s says nothing about itself", c.Name())
		}
	}
}
