// A workload that uses go-spiffe on the Workload API: prints what it was given as one JSON document.
// Arguments: the socket, an audience, and how many certificates it waits for.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

type seen struct {
	ID           string   `json:"id"`
	Serials      []string `json:"serials"`
	X509Bundles  []string `json:"x509Bundles"`
	JWTSubject   string   `json:"jwtSubject"`
	JWTBundles   []string `json:"jwtBundles"`
	ValidatedBy  []string `json:"validatedBy"`
	WrongRefused []string `json:"wrongRefused"`
}

// watcher sends each whole state on.
type watcher struct {
	updates chan *workloadapi.X509Context
	errors  chan error
}

func (w watcher) OnX509ContextUpdate(update *workloadapi.X509Context) { w.updates <- update }
func (w watcher) OnX509ContextWatchError(err error)                   { w.errors <- err }

func run(socket, audience string, certificates int) (*seen, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	at := workloadapi.WithAddr("unix://" + socket)
	found := &seen{}

	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(at))
	if err != nil {
		return nil, fmt.Errorf("X.509 source: %w", err)
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("X.509-SVID: %w", err)
	}
	found.ID = svid.ID.String()

	client, err := workloadapi.New(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	defer client.Close()
	x509Bundles, err := client.FetchX509Bundles(ctx)
	if err != nil {
		return nil, fmt.Errorf("X.509 bundles: %w", err)
	}
	for _, bundle := range x509Bundles.Bundles() {
		found.X509Bundles = append(found.X509Bundles, bundle.TrustDomain().IDString())
	}
	if err := tokens(ctx, client, at, audience, found); err != nil {
		return nil, err
	}
	return found, rotations(ctx, client, certificates, found)
}

func tokens(ctx context.Context, client *workloadapi.Client, at workloadapi.ClientOption, audience string, found *seen) error {
	token, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return fmt.Errorf("JWT-SVID: %w", err)
	}
	found.JWTSubject = token.ID.String()
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return fmt.Errorf("JWT bundles: %w", err)
	}
	for _, bundle := range bundles.Bundles() {
		found.JWTBundles = append(found.JWTBundles, bundle.TrustDomain().IDString())
	}
	source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(at))
	if err != nil {
		return fmt.Errorf("JWT source: %w", err)
	}
	defer source.Close()
	for name, validate := range map[string]func(string) error{
		"agent": func(audience string) error {
			_, err := client.ValidateJWTSVID(ctx, token.Marshal(), audience)
			return err
		},
		"client": func(audience string) error {
			_, err := jwtsvid.ParseAndValidate(token.Marshal(), jwtbundle.Source(source), []string{audience})
			return err
		},
	} {
		if err := validate(audience); err != nil {
			return fmt.Errorf("the %s does not take the token: %w", name, err)
		}
		found.ValidatedBy = append(found.ValidatedBy, name)
		if validate("somebody else") != nil {
			found.WrongRefused = append(found.WrongRefused, name)
		}
	}
	return nil
}

// rotations follows one stream until enough different certificates have come, each of them in order by the bundle beside it.
func rotations(ctx context.Context, client *workloadapi.Client, certificates int, found *seen) error {
	watch := watcher{updates: make(chan *workloadapi.X509Context), errors: make(chan error)}
	go client.WatchX509Context(ctx, watch)
	known := map[string]bool{}
	for len(found.Serials) < certificates {
		select {
		case update := <-watch.updates:
			svid := update.DefaultSVID()
			if _, _, err := x509svid.Verify(svid.Certificates, update.Bundles); err != nil {
				return fmt.Errorf("a certificate does not verify: %w", err)
			}
			serial := svid.Certificates[0].SerialNumber.Text(16)
			if !known[serial] {
				known[serial] = true
				found.Serials = append(found.Serials, serial)
			}
		case err := <-watch.errors:
			return fmt.Errorf("the stream: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("only %d certificates: %w", len(found.Serials), ctx.Err())
		}
	}
	return nil
}

func main() {
	certificates, err := strconv.Atoi(os.Args[3])
	if err != nil {
		panic(err)
	}
	found, err := run(os.Args[1], os.Args[2], certificates)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		panic(err)
	}
}
