// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ksmbd-notifyd/ipc"
)

// usages are by command, and "" is for the daemon.
var usages = map[string]string{"": daemonUsage, "status": statusUsage, "check": checkUsage, "watch": watchUsage, "trace": traceUsage, "metrics": metricsUsage}

var usageOption = regexp.MustCompile(`(?m)^  (?:(-\w),|   ) (--[a-z]+)`)

// optionsOf returns the options that a usage names, sorted.
func optionsOf(usage string) (options []string) {
	for _, m := range usageOption.FindAllStringSubmatch(usage, -1) {
		options = append(options, m[2])
		if m[1] != "" {
			options = append(options, m[1])
		}
	}
	slices.Sort(options)
	return options
}

// bash completes exactly the commands and the options that there are.
func TestCompletionBash(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	complete := func(words ...string) []string {
		t.Helper()
		const script = `. ../../packaging/completions/bash; COMP_WORDS=(ksmbd-notifyd "$@"); COMP_CWORD=$#
			_ksmbd_notifyd; printf '%s\n' "${COMPREPLY[@]}"`
		out, err := exec.Command(bash, append([]string{"-uc", script, "bash"}, words...)...).CombinedOutput()
		if err != nil {
			t.Errorf("%q: %v: %s", words, err, out)
		}
		got := strings.Fields(string(out))
		slices.Sort(got)
		return got
	}
	for command, usage := range usages {
		words := []string{command, "-"}
		if command == "" {
			words = words[1:]
		}
		if got, want := complete(words...), optionsOf(usage); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", words, got, want)
		}
	}
	for _, test := range []struct{ words, want string }{
		{"", "check metrics status trace watch"},
		{"-v st", "status"},
		{"watch -f dir", "dir-name"},
		{"watch --filter ea,stream-s", "ea,stream-size"},
		{"watch /de", "/dev"},
		{"check -C /proc/versio", "/proc/version"},
		{"check --config = /proc/versio", "/proc/version"}, // as readline parts --config=
		{"--settings = /proc/versio", "/proc/version"},
		{"check --settings /proc/versio", "/proc/version"},
		{"watch --filter = ea,stream-s", "ea,stream-size"},
		{"trace /de", "/dev"},
	} {
		if strings.HasPrefix(test.want, "/") { // readline quotes it, where it is told that it is a file
			const script = `. ../../packaging/completions/bash; compopt() { echo "$@"; }; COMP_WORDS=(ksmbd-notifyd "$@"); COMP_CWORD=$#; _ksmbd_notifyd`
			if out, err := exec.Command(bash, append([]string{"-uc", script, "bash"}, strings.Split(test.words, " ")...)...).Output(); err != nil || string(out) != "-o filenames\n" {
				t.Errorf("%q: %v, %q", test.words, err, out)
			}
		}
		if got := strings.Join(complete(strings.Split(test.words, " ")...), " "); got != test.want {
			t.Errorf("%q: got %q, want %q", test.words, got, test.want)
		}
	}
}

// The other shells' files name every command, option and filter.
func TestCompletionsNameAll(t *testing.T) {
	for name, option := range map[string]func(o string) string{
		"bash": regexp.QuoteMeta,
		"zsh":  func(o string) string { return `[{,']` + o + `[^a-z]` },
		"fish": func(o string) string {
			if strings.HasPrefix(o, "--") {
				return ` -l ` + o[2:] + ` `
			}
			return ` -s ` + o[1:] + ` `
		},
	} {
		text, err := os.ReadFile("../../packaging/completions/" + name)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for command, usage := range usages {
			want = append(want, command)
			for _, o := range optionsOf(usage) {
				want = append(want, option(o))
			}
		}
		want = append(want, strings.Split(ipc.All.String()+",all", ",")...)
		for _, w := range want {
			if !regexp.MustCompile(w).Match(text) {
				t.Errorf("%s: %s is missing", name, w)
			}
		}
	}
}
