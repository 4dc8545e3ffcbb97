package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/godwit-cni/godwit/pkg/wire"
)

// Plugin carries CNI operations out.
type Plugin struct {
	// Context bounds every operation, beside the operation's own deadline.
	Context context.Context //nolint:containedctx // skel's callbacks take none
	// Stdout is where results go.
	Stdout io.Writer
}

// Funcs are the operations for skel.
func (p *Plugin) Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: p.add, Del: p.del, Check: p.check, GC: p.gc, Status: p.status}
}

func (p *Plugin) add(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	req, err := attachment(conf, args, wire.Add)
	if err != nil {
		return err
	}
	res, err := p.call(conf, req, addTimeout)
	if err != nil {
		return err
	}
	if res == nil {
		return types.NewError(types.ErrInternal, "godwit-agent answered ADD without a result", "")
	}
	return p.print(conf, res)
}

// del needs the pod's name for nothing: what there is to remove is found by container and interface.
func (p *Plugin) del(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	req := wire.Request{Command: wire.Del, Conf: conf.Name, ContainerID: args.ContainerID, IfName: args.IfName, Netns: args.Netns}
	_, err = p.call(conf, req, otherTimeout)
	return err
}

func (p *Plugin) check(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	if conf.previous == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "CHECK without prevResult", "the runtime must pass the result of ADD")
	}
	req, err := attachment(conf, args, wire.Check)
	if err != nil {
		return err
	}
	if req.Previous, err = fromResult(conf.previous, args); err != nil {
		return err
	}
	_, err = p.call(conf, req, otherTimeout)
	return err
}

func (p *Plugin) gc(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	req := wire.Request{Command: wire.GC, Conf: conf.Name, Valid: make([]wire.Attachment, 0, len(conf.ValidAttachments))}
	for _, a := range conf.ValidAttachments {
		req.Valid = append(req.Valid, wire.Attachment{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	_, err = p.call(conf, req, otherTimeout)
	return err
}

func (p *Plugin) status(args *skel.CmdArgs) error {
	conf, err := parseConf(args.StdinData)
	if err != nil {
		return err
	}
	_, err = p.call(conf, wire.Request{Command: wire.Status, Conf: conf.Name}, otherTimeout)
	if err == nil {
		return nil
	}
	var e *types.Error
	if errors.As(err, &e) && e.Code != types.ErrTryAgainLater {
		return err
	}
	return types.NewError(wire.CodeUnavailable, "Godwit cannot attach pods on this node now", err.Error())
}

func attachment(conf *netConf, args *skel.CmdArgs, cmd wire.Command) (wire.Request, error) {
	pod, err := wire.ParseArgs(args.Args)
	if err != nil {
		return wire.Request{}, types.NewError(types.ErrInvalidEnvironmentVariables, "cannot tell the pod from CNI_ARGS", err.Error())
	}
	return wire.Request{
		Command: cmd, Conf: conf.Name, Network: conf.Network, ContainerID: args.ContainerID, Netns: args.Netns, IfName: args.IfName, Pod: pod,
	}, nil
}

// call returns *types.Error only. An agent that is not there is "try again later": it is about to be, or a person has to see to it.
func (p *Plugin) call(conf *netConf, req wire.Request, timeout time.Duration) (*wire.Result, error) {
	ctx, cancel := context.WithTimeout(p.Context, timeout)
	defer cancel()
	res, err := wire.NewClient(conf.Socket).Do(ctx, req)
	var e *types.Error
	switch {
	case err == nil:
		return res, nil
	case errors.As(err, &e):
		return nil, e
	default:
		return nil, types.NewError(types.ErrTryAgainLater, fmt.Sprintf("%s: %v", req.Command, err), "")
	}
}
