package timeline

import "strings"

// colours of one mode.
type colours struct {
	paper, ink, dim, grid, lane, zoom, godwit, qemu, to, from, lost string
}

var (
	lightMode = colours{
		paper: "#ffffff", ink: "#1f2328", dim: "#59636e", grid: "#d1d9e0", lane: "#f6f8fa", zoom: "#eaeef2", godwit: "#0f7b6c", qemu: "#bf8700", to: "#0969da",
		from: "#8250df", lost: "#cf222e",
	}
	darkMode = colours{
		paper: "#0d1117", ink: "#e6edf3", dim: "#9198a1", grid: "#30363d", lane: "#151b23", zoom: "#1c232c", godwit: "#39c5b0", qemu: "#d29922", to: "#4493f8",
		from: "#ab7df8", lost: "#f85149",
	}
)

// rules colour the picture's classes. Not by CSS variables: programs for slides do not know them.
func (c colours) rules() string {
	return strings.NewReplacer("PAPER", c.paper, "INK", c.ink, "DIM", c.dim, "GRID", c.grid, "LANE", c.lane, "ZOOM", c.zoom, "GODWIT", c.godwit, "QEMU", c.qemu,
		"TO", c.to, "FROM", c.from, "LOST", c.lost).Replace(`.paper{fill:PAPER}.ink,.title,.figure,.name{fill:INK}.dim,.sub,.small,.tick,.ms{fill:DIM}
.lane{fill:LANE}.zoom{fill:ZOOM}.grid{stroke:GRID}.axis{stroke:DIM}.leader{stroke:DIM}
.other{fill:INK;stroke:PAPER}.godwit{fill:GODWIT;stroke:PAPER}.qemu{fill:QEMU;stroke:PAPER}
.stop{fill:QEMU}.stopedge{stroke:QEMU}.amber{fill:QEMU}
.d0{fill:TO}.d1{fill:FROM}.gap0{fill:TO}.gap1{fill:FROM}.edge0{stroke:TO}.edge1{stroke:FROM}.area0{fill:TO;stroke:TO}.area1{fill:FROM;stroke:FROM}
.lost{stroke:LOST}.bad{fill:LOST}
`)
}

// shapes are what both modes have in common.
const shapes = `text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.title{font-size:27px;font-weight:700}.sub{font-size:15px}.figure{font-size:31px;font-weight:700}.small{font-size:13px}.head{font-size:14px;font-weight:600}
.name{font-size:12.5px}.ms{font-size:12.5px}.tick{font-size:12px}.strong{font-size:12.5px;font-weight:600}
.grid{stroke-width:1}.axis{stroke-width:1}.leader{stroke-width:1;opacity:.55}.other,.godwit,.qemu{stroke-width:1.5}
.stop{opacity:.17}.stopedge{stroke-width:1;stroke-dasharray:4 3}.gap0,.gap1{opacity:.15}.edge0,.edge1{stroke-width:1.5}.area0,.area1{fill-opacity:.28;stroke-width:1.5;stroke-linejoin:round}
.lost{fill:none;stroke-width:1.6}
`

func stylesheet() string {
	return "<style>\n" + shapes + lightMode.rules() + "@media (prefers-color-scheme:dark){\n" + darkMode.rules() + "}\n</style>"
}
