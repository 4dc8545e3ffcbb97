package traffic

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// maxSpec bounds the body of a request.
const maxSpec = 64 << 10

// handler serves
//
//	POST /runs             a Spec; 201 and a Status
//	GET  /runs/ID          a Status
//	GET  /runs/ID/result   waits for the run's end; a Result
//	POST /runs/ID/stop     ends the run; a Result
//	GET  /arrivals/ID      Arrivals
//	GET  /                 200 "traffic"
//
// Errors are text: 400 for a spec that is wrong, 404 for what is not known, 500 for a run that failed.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "traffic") })
	mux.HandleFunc("POST /runs", func(w http.ResponseWriter, r *http.Request) {
		var spec Spec
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxSpec))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&spec); err != nil {
			http.Error(w, fmt.Sprintf("read the spec: %v", err), http.StatusBadRequest)
			return
		}
		id, err := s.runs.begin(r.Context(), spec)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer(w, http.StatusCreated, s.runs.find(id).Status())
	})
	mux.HandleFunc("GET /runs/{id}", s.onRun(func(w http.ResponseWriter, _ *http.Request, run *Run) { answer(w, http.StatusOK, run.Status()) }))
	mux.HandleFunc("GET /runs/{id}/result", s.onRun(func(w http.ResponseWriter, r *http.Request, run *Run) {
		result, err := run.Wait(r.Context())
		answerResult(w, result, err)
	}))
	mux.HandleFunc("POST /runs/{id}/stop", s.onRun(func(w http.ResponseWriter, r *http.Request, run *Run) {
		result, err := run.Stop(r.Context())
		answerResult(w, result, err)
	}))
	mux.HandleFunc("GET /arrivals/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, ok := pathID(w, r)
		if !ok {
			return
		}
		arrivals, known := s.recorder.arrivals(id)
		if !known {
			http.Error(w, fmt.Sprintf("nothing of run %s has arrived here", id), http.StatusNotFound)
			return
		}
		answer(w, http.StatusOK, arrivals)
	})
	return mux
}

func (s *Server) onRun(f func(http.ResponseWriter, *http.Request, *Run)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, ok := pathID(w, r)
		if !ok {
			return
		}
		run := s.runs.find(id)
		if run == nil {
			http.Error(w, fmt.Sprintf("run %s is not known here", id), http.StatusNotFound)
			return
		}
		f(w, r, run)
	}
}

func pathID(w http.ResponseWriter, r *http.Request) (id RunID, ok bool) {
	if err := id.UnmarshalText([]byte(r.PathValue("id"))); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return 0, false
	}
	return id, true
}

func answerResult(w http.ResponseWriter, result *Result, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, http.StatusOK, result)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that is gone misses it
}
