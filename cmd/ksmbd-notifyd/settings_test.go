// SPDX-License-Identifier: GPL-2.0-or-later

package main

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"ksmbd-notifyd/ipc"
)

func TestReadSettings(t *testing.T) {
	for _, test := range []struct {
		text string
		want settings
	}{
		{"", settings{metrics: "127.0.0.1:9842"}},
		{"[Global]\nChange Notify = NO ; for now\nmax watches per user=10\nmetrics = 9999\nverbose = 1\n[Docs]\nchange notify = yes\n[scratch]\nchange notify = off\n",
			settings{ipc.Policy{Off: true, UserWatches: 10, Shares: map[string]bool{"docs": true, "scratch": false}}, "127.0.0.1:9999", 1}},
		{"[global]\nmetrics = [::1]:80\n", settings{metrics: "[::1]:80"}},
		{"[global]\nmetrics = 192.0.2.1:80\n", settings{metrics: "192.0.2.1:80"}},
	} {
		if test.want.policy.Shares == nil {
			test.want.policy.Shares = make(map[string]bool)
		}
		if got, err := readSettings(writeSettings(t, test.text)); err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%q: got %+v, %v, want %+v", test.text, got, err, test.want)
		}
	}
	for _, text := range []string{"change notify = no\n", "[global]\nnotify = no\n", "[global]\nchange notify\n", "[a]\nverbose = 1\n", "[global]\nverbose = -1\n",
		"[global]\nmetrics = localhost:80\n", "[global]\nmetrics = 0\n", "[global]\nmetrics = 70000\n", "[global]\nmetrics = 1.2.3.4:0\n", "[global]\nmax watches per user = many\n"} {
		if got, err := readSettings(writeSettings(t, text)); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// The file in the package has all settings, with the values that they have without
// it, and all of its lines are in order.
func TestReferenceSettings(t *testing.T) {
	text, err := os.ReadFile("../../packaging/ksmbd-notifyd.conf")
	if err != nil {
		t.Fatal(err)
	}
	none, _ := readSettings("/nowhere")
	if got, err := readSettings("../../packaging/ksmbd-notifyd.conf"); err != nil || !reflect.DeepEqual(got, none) {
		t.Errorf("as it is: %+v, %v", got, err)
	}
	example := regexp.MustCompile(`(?m)^; ?(\[|\t)`).ReplaceAllString(string(text), "$1")
	got, err := readSettings(writeSettings(t, example))
	if err != nil {
		t.Errorf("%v, without the comments:\n%s", err, example)
	}
	if want := map[string]bool{"scratch": false}; !reflect.DeepEqual(got.policy.Shares, want) || got.policy.Off || got.metrics != none.metrics || got.verbose != 0 {
		t.Errorf("without the comments: %+v", got)
	}
	source, err := os.ReadFile("settings.go")
	if err != nil {
		t.Fatal(err)
	}
	keys := regexp.MustCompile(`case "([a-z]+ [a-z ]+|metrics|verbose)":`).FindAllStringSubmatch(string(source), -1)
	if len(keys) != 4 {
		t.Errorf("%d settings: %q", len(keys), keys)
	}
	man, err := os.ReadFile("../../packaging/ksmbd-notifyd.8")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if !strings.Contains(example, "\n\t"+key[1]+" = ") {
			t.Errorf("%s is not in the file", key[1])
		}
		if !strings.Contains(string(man), ".It Li "+key[1]) {
			t.Errorf("%s is not in the man page", key[1])
		}
	}
}
