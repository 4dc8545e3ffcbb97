package ovnpod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/godwit-cni/godwit/pkg/pki"
)

// retryInterval is the pause between attempts to read the record.
const retryInterval = time.Second

// Member is one server of NB or SB, on this node.
type Member struct {
	Config   Config
	Database Database
	API      API
	Log      *slog.Logger
	// Addresses are the node's.
	Addresses []netip.Addr
}

// found is what there is before a member starts.
type found struct {
	// file: there is one; server, cluster and address are what it says of itself.
	file                     bool
	server, cluster, address string
	// others: other nodes may have members.
	others bool
	// want is the address that the member has now.
	want    string
	ordinal int
	record  Record
	// gap is what the file lacks; empty for nothing. broken is why it cannot be read at all; nothing else is known of it then.
	gap, broken string
	// unasked: the API server does not answer, so that record says nothing.
	unasked bool
}

// step is what to do with the file.
type step string

const (
	stepKeep   step = "keep"   // it is a member's
	stepCreate step = "create" // the first member makes the cluster
	stepJoin   step = "join"   // an empty disk joins the cluster
	stepRejoin step = "rejoin" // the file is put aside first
	stepMove   step = "move"   // the first member makes a new cluster of what the file has: one that exists cannot go from tcp: to ssl:, or back, member by member
	stepWait   step = "wait"   // the first member has not made the cluster yet
)

// decide says what to do, and why.
func decide(f found) (step, string) {
	switch {
	case f.broken != "":
		return stepRejoin, "the file cannot be read: " + f.broken
	case f.file && slices.Contains(f.record.Removed, removedName(f.server, f.address)):
		return stepRejoin, "this member was removed from the cluster while it was away"
	case f.file && protocol(f.address) != protocol(f.want) && f.unasked:
		return stepWait, "the API server does not answer: it knows whether the first pod has moved the cluster from " + protocol(f.address) + ": to " + protocol(f.want) + ":"
	case f.file && protocol(f.address) != protocol(f.want) && (f.record.Cluster == "" || f.record.Cluster == f.cluster):
		if f.ordinal == 0 {
			return stepMove, "members reach one another by " + protocol(f.want) + ": now, and it was " + protocol(f.address) + ":"
		}
		return stepWait, "the StatefulSet's first pod moves the cluster from " + protocol(f.address) + ": to " + protocol(f.want) + ": first; if it waits to join, it is on a node without a copy: cordon that one and delete the pod"
	case f.file && f.address != f.want && f.record.Cluster != "":
		return stepRejoin, "this node's address was " + f.address
	case f.file && f.address != f.want && !f.unasked: // a file of an earlier install, or the record was lost: with this address it would never be found
		if f.ordinal == 0 {
			return stepMove, "this node's address was " + f.address + ", and no cluster is known"
		}
		return stepWait, "this node's address was " + f.address + ", and no cluster is known: the StatefulSet's first pod makes one"
	case f.file && f.record.Cluster != "" && f.record.Cluster != f.cluster:
		return stepRejoin, "the file is of another cluster, " + f.cluster
	case f.gap != "" && f.record.Cluster != "" && f.others:
		return stepRejoin, "no server starts on the file: " + f.gap
	case f.file:
		return stepKeep, ""
	case f.record.Cluster != "":
		return stepJoin, "there is a cluster and no file"
	case f.ordinal == 0:
		return stepCreate, "there has never been a cluster"
	}
	return stepWait, "there is no cluster yet: the StatefulSet's first pod makes it"
}

// protocol is that of raft's address.
func protocol(address string) string {
	p, _, _ := strings.Cut(address, ":")
	return p
}

// Prepare makes the member's file what it should be, and returns the command of its server. It waits for the API server where there is no file: a second
// cluster must never come to be because nobody could ask for the first.
func (m Member) Prepare(ctx context.Context) ([]string, error) {
	for _, dir := range []string{m.Config.StateDir, m.Config.RunDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make a directory for database %s: %w", m.Database.Name, err)
		}
	}
	host, err := m.Database.local(m.Addresses)
	if err != nil {
		return nil, err
	}
	for told := ""; ; {
		f, err := m.look(ctx, host)
		if err != nil {
			return nil, err
		}
		do, why := decide(f)
		if err := m.Database.roomy(); err != nil && (do == stepJoin || do == stepRejoin) {
			do, why = stepWait, why+", and "+err.Error() // a file that was cut short for want of room would be worse than none
		}
		if do != stepWait {
			m.Log.Info("preparing the database", "db", m.Database.Name, "file", m.Database.File, "step", do, "reason", why, "address", f.want)
			if err := m.apply(ctx, do, host, f); err != nil {
				return nil, err
			}
			return m.command(host), nil
		}
		if told != why {
			told = why
			m.Log.Info("waiting", "db", m.Database.Name, "reason", why)
		}
		if err := pause(ctx, retryInterval); err != nil {
			return nil, fmt.Errorf("wait for the cluster of %s: %w", m.Database.Name, err)
		}
	}
}

func (m Member) look(ctx context.Context, host netip.Addr) (f found, err error) {
	f.want, f.others = m.Database.raftAddress(host), len(m.Database.others(host)) > 0
	if f.ordinal, err = m.Config.Ordinal(); err != nil {
		return f, err
	}
	if f.file, err = exists(m.Database.File); err != nil {
		return f, err
	}
	if f.file {
		if err := m.inspect(ctx, &f); err != nil {
			if !mentions(err.Error(), unreadable) {
				return f, err // the disk, or the tool: the file may be good
			}
			f.broken = err.Error()
		}
	}
	for {
		if f.record, err = m.API.Record(ctx, m.Database.Kind); err == nil {
			return f, m.finishMove(ctx, &f)
		}
		if f.file && f.broken == "" { // OVN has to be there for the API server, not the other way round
			f.unasked = true
			m.Log.Warn("starting with the file as it is, since the API server does not answer", "db", m.Database.Name, "error", err)
			return f, nil
		}
		m.Log.Warn("waiting for the API server: there is no file that can be read, and it knows whether there is a cluster", "db", m.Database.Name, "error", err)
		if err := pause(ctx, retryInterval); err != nil {
			return f, fmt.Errorf("wait for the API server: %w", err)
		}
	}
}

// inspect asks the file what it is of.
func (m Member) inspect(ctx context.Context, f *found) (err error) {
	if f.server, err = databaseTool(ctx, "db-sid", m.Database.File); err != nil {
		return err
	}
	if f.address, err = databaseTool(ctx, "db-local-address", m.Database.File); err != nil {
		return err
	}
	f.gap = m.Database.gap(ctx)
	f.cluster, err = databaseTool(ctx, "db-cid", m.Database.File)
	return err
}

func (m Member) apply(ctx context.Context, do step, host netip.Addr, f found) error {
	switch do {
	case stepKeep, stepWait:
		return nil
	case stepCreate:
		return m.create(ctx, f.want)
	case stepMove:
		return m.move(ctx, f)
	}
	others := m.Database.others(host)
	if len(others) == 0 || f.record.Cluster == "" {
		return m.forlorn(f)
	}
	return m.join(ctx, f, others)
}

// forlorn says what to do where there is nobody to have a copy from.
func (m Member) forlorn(f found) error {
	d, reason := m.Database, "is gone from this node"
	switch {
	case f.broken != "":
		reason = fmt.Sprintf("on this node cannot be read (%s)", f.broken)
	case f.file:
		reason = fmt.Sprintf("on this node is not what it was (it is of cluster %s at %s, wanted is %s at %s)", f.cluster, f.address, f.record.Cluster, f.want)
	}
	known := d.Flag + " names no other node that could have a copy"
	if f.record.Cluster == "" {
		known = "no cluster is known"
	}
	return fmt.Errorf("database %s %s, and %s: if there is none, remove %s and kubectl -n %s delete configmap %s: "+
		"Godwit makes an empty database and fills it from the API", d.Name, reason, known, d.File, m.Config.Namespace, RecordName)
}

// join makes the file of a member that has nothing yet, under another name first, as create does.
func (m Member) join(ctx context.Context, f found, others []string) error {
	d := m.Database
	if err := remove(m.newFile()); err != nil {
		return err
	}
	args := append([]string{"--cid=" + f.record.Cluster, "join-cluster", m.newFile(), d.Name, f.want}, others...)
	if _, err := databaseTool(ctx, args...); err != nil {
		return errors.Join(err, remove(m.newFile()))
	}
	if f.file {
		return m.replace()
	}
	return m.rename()
}

// create makes the cluster under another name first: a file that was cut short when the machine died would never be completed. The record comes after the file, or it could
// speak of a cluster that nobody has.
func (m Member) create(ctx context.Context, address string) error {
	cluster, err := m.createFrom(ctx, m.Database.Schema, address)
	if err != nil {
		return err
	}
	if err := m.rename(); err != nil {
		return err
	}
	return m.API.Claim(ctx, m.Database.Kind, "", cluster) // who is late joins the other at its next start, as decide has it
}

func (m Member) newFile() string { return m.Database.File + ".new" }

// createFrom makes a cluster of one, with what a schema or another database has, in newFile.
func (m Member) createFrom(ctx context.Context, contents, address string) (cluster string, err error) {
	if err := remove(m.newFile()); err != nil {
		return "", err
	}
	timer := strconv.FormatInt(m.Config.ElectionTimer.Milliseconds(), 10)
	if _, err := databaseTool(ctx, "--election-timer="+timer, "create-cluster", m.newFile(), contents, address); err != nil {
		return "", err
	}
	return databaseTool(ctx, "db-cid", m.newFile())
}

// move makes another cluster with the contents of this one. From the record on the others' files are of a former cluster, and they join this one.
func (m Member) move(ctx context.Context, f found) error {
	plain := m.Database.File + ".standalone"
	if err := remove(plain); err != nil {
		return err
	}
	if _, err := databaseTool(ctx, "cluster-to-standalone", plain, m.Database.File); err != nil {
		return err
	}
	cluster, err := m.createFrom(ctx, plain, f.want)
	if err != nil {
		return err
	}
	if err := m.API.Claim(ctx, m.Database.Kind, f.record.Cluster, cluster); err != nil {
		return err
	}
	return errors.Join(m.replace(), remove(plain))
}

// replace puts newFile in the place of the file, which is there at every moment, and keeps that for a look at it.
func (m Member) replace() error {
	former := m.Database.File + ".former"
	if err := remove(former); err != nil {
		return err
	}
	if err := os.Link(m.Database.File, former); err != nil {
		return fmt.Errorf("keep the former file of %s: %w", m.Database.Name, err)
	}
	return m.rename()
}

func (m Member) rename() error {
	if err := os.Rename(m.newFile(), m.Database.File); err != nil {
		return fmt.Errorf("put database %s in its place: %w", m.Database.Name, err)
	}
	return nil
}

// finishMove is for a member that died between the record of the cluster that it made and the file's arrival in its place: nobody else has that cluster.
func (m Member) finishMove(ctx context.Context, f *found) error {
	if !f.file || f.record.Cluster == "" || f.record.Cluster == f.cluster {
		return nil
	}
	if there, err := exists(m.newFile()); err != nil || !there {
		return err
	}
	if cluster, err := databaseTool(ctx, "db-cid", m.newFile()); err != nil || cluster != f.record.Cluster {
		return nil //nolint:nilerr // it was cut short, or is of something else: no cluster's file
	}
	m.Log.Info("ending a move that was cut short", "db", m.Database.Name, "cluster", f.record.Cluster)
	if err := m.replace(); err != nil {
		return err
	}
	f.broken = ""
	return m.inspect(ctx, f)
}

// command is the server's. Clients come from every node by the node's address, raft's members by what the file says. By TLS, the northbound database trusts administrators, and the southbound one nodes.
func (m Member) command(host netip.Addr) []string {
	d := m.Database
	remote, tls := "p"+d.Protocol+":"+strconv.Itoa(d.Port)+":"+bracketed(host), []string(nil)
	if d.secure() {
		tls = tlsArgs(m.Config.AdminTLS)
	}
	if d.secure() && d.Kind == ProbeSB { // a role can be given in the database alone: Watcher does
		remote, tls = "db:"+d.Name+",SB_Global,connections", tlsArgs(m.Config.ServerTLS)
	}
	argv := []string{
		"ovsdb-server", "--remote=punix:" + d.Socket, "--remote=" + remote, "--unixctl=" + d.Control, "-vconsole:info", "-vsyslog:off", "-vfile:off",
	}
	return slices.Concat(argv, tls, m.Config.Extra, []string{d.File})
}

// tlsArgs are the options of all of OVN's programs. They look at the files again and again.
func tlsArgs(dir string) []string {
	return []string{
		"--private-key=" + filepath.Join(dir, pki.KeyFile), "--certificate=" + filepath.Join(dir, pki.CertFile), "--ca-cert=" + filepath.Join(dir, pki.CAFile),
	}
}

func bracketed(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// NodeAddresses are the addresses of the links in this network namespace.
func NodeAddresses() ([]netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
			out = append(out, p.Addr())
		}
	}
	return out, nil
}

func exists(file string) (bool, error) {
	_, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a file: %w", err)
	}
	return true, nil
}

func remove(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a file of an earlier run: %w", err)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
