package errand

import (
	"fmt"
	"slices"
	"strings"
)

// Options of tcpdump 4.99, tcpdump(1): those that take an argument.
const shortWithArgument = "BcCEFGijmMQrsTVwWyzZ"

func longWithArgument() []string {
	return []string{"buffer-size", "direction", "interface", "linktype", "relinquish-privileges", "snapshot-length", "time-stamp-precision", "time-stamp-type"}
}

// Why some make no sense in the agent's container.
const (
	oneFile  = "what is seen goes to standard output: -w - > FILE"
	noFiles  = "the agent's container has no file to read from"
	ownPort  = "the interface is that of the VM or pod"
	ownUser  = "it runs as nobody, with the one privilege to see packets"
	mixedOut = "text and packets would both go to standard output: leave --print or -w out"
)

// refused are the options that make no sense, and why. Of -w it depends on its argument.
func refused() map[string]string {
	return map[string]string{
		"i": ownPort, "interface": ownPort, "r": noFiles, "V": noFiles, "F": noFiles, "C": oneFile, "G": oneFile, "W": oneFile, "z": oneFile, "Z": ownUser, "relinquish-privileges": ownUser,
	}
}

// Tcpdump checks what tcpdump is to be called with, and adds what it always needs here: no look at names, which the container has none of; nothing of the link's own
// settings changed; and what is seen at once. binary says that it will write pcap, not text.
func Tcpdump(given []string) (args []string, binary bool, err error) {
	for i := 0; i < len(given) && given[i] != "--"; i++ {
		name, value, ahead, is := option(given[i:])
		if !is {
			continue
		}
		if ahead {
			i++
		}
		if why, no := refused()[name]; no {
			return nil, false, fmt.Errorf("tcpdump's option %s: %s", dashed(name), why)
		}
		if name == "w" {
			if value != "-" {
				return nil, false, fmt.Errorf("tcpdump's option -w %s: %s", value, oneFile)
			}
			binary = true
		}
	}
	if binary && slices.Contains(given, "--print") {
		return nil, false, fmt.Errorf("tcpdump's option --print: %s", mixedOut)
	}
	args = []string{"-n", "-p"}
	if binary {
		args = append(args, "-U")
	} else {
		args = append(args, "-l", "--immediate-mode")
	}
	return append(args, given...), binary, nil
}

// option is the option with which arguments begin, of several in one word the one that takes an argument, or that makes no sense. ahead: the argument is the word after it.
func option(args []string) (name, value string, ahead, is bool) {
	word := args[0]
	next := func() string {
		if len(args) > 1 {
			return args[1]
		}
		return ""
	}
	if long, ok := strings.CutPrefix(word, "--"); ok {
		long, value, said := strings.Cut(long, "=")
		i := slices.IndexFunc(longWithArgument(), func(l string) bool { return strings.HasPrefix(l, long) }) // getopt takes what is not ambiguous
		if i < 0 {
			return long, "", false, true
		}
		if said {
			return longWithArgument()[i], value, false, true
		}
		return longWithArgument()[i], next(), true, true
	}
	letters, ok := strings.CutPrefix(word, "-")
	if !ok || letters == "" {
		return "", "", false, false
	}
	for i, letter := range letters {
		if !strings.ContainsRune(shortWithArgument, letter) {
			continue
		}
		if rest := letters[i+1:]; rest != "" {
			return string(letter), rest, false, true
		}
		return string(letter), next(), true, true
	}
	return letters, "", false, true
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}
