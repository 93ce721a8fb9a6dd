// A provider that has the schemas of another and does nothing: enough to validate modules and to test them with mocks,
// where the provider itself cannot be had. Its name is that of its file, its schemas those of $PROVIDER_SCHEMAS
// (infra/schemas/providers.json).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/terraform-plugin-go/tfprotov6"
	"github.com/hashicorp/terraform-plugin-go/tfprotov6/tf6server"
	"github.com/hashicorp/terraform-plugin-go/tftypes"
)

type field struct {
	Required bool             `json:"required"`
	Many     bool             `json:"many"`
	Type     string           `json:"type"`
	Block    map[string]field `json:"block"`
	Object   map[string]field `json:"object"`
	Exports  map[string]any   `json:"exports"`
}

type binding struct {
	Arguments map[string]field `json:"arguments"`
	Exports   map[string]any   `json:"exports"`
}

func argumentType(one field) tftypes.Type {
	switch {
	case one.Object != nil:
		return tftypes.DynamicPseudoType
	case one.Type == "string":
		return tftypes.String
	case one.Type == "number":
		return tftypes.Number
	case one.Type == "bool":
		return tftypes.Bool
	case one.Type == "string[]":
		return tftypes.List{ElementType: tftypes.String}
	case one.Type == "number[]":
		return tftypes.List{ElementType: tftypes.Number}
	case one.Type == "map":
		return tftypes.Map{ElementType: tftypes.String}
	}
	return tftypes.DynamicPseudoType
}

func exportType(written any) tftypes.Type {
	switch one := written.(type) {
	case string:
		return map[string]tftypes.Type{"string": tftypes.String, "number": tftypes.Number, "bool": tftypes.Bool, "dynamic": tftypes.DynamicPseudoType}[one]
	case []any:
		switch one[0] {
		case "list":
			return tftypes.List{ElementType: exportType(one[1])}
		case "map":
			return tftypes.Map{ElementType: exportType(one[1])}
		case "object":
			attributes := map[string]tftypes.Type{}
			for name, inner := range one[1].(map[string]any) {
				attributes[name] = exportType(inner)
			}
			return tftypes.Object{AttributeTypes: attributes}
		}
	}
	panic(written)
}

func block(arguments map[string]field, exports map[string]any) *tfprotov6.SchemaBlock {
	made := &tfprotov6.SchemaBlock{}
	for name, one := range arguments {
		if one.Block != nil {
			nested := &tfprotov6.SchemaNestedBlock{TypeName: name, Block: block(one.Block, one.Exports), Nesting: tfprotov6.SchemaNestedBlockNestingModeList}
			if one.Required {
				nested.MinItems = 1
			}
			if !one.Many {
				nested.MaxItems = 1
			}
			made.BlockTypes = append(made.BlockTypes, nested)
			continue
		}
		writeOnly := strings.HasSuffix(name, "_wo")
		made.Attributes = append(made.Attributes, &tfprotov6.SchemaAttribute{
			Name: name, Type: argumentType(one), Required: one.Required, Optional: !one.Required,
			Computed: !one.Required && !writeOnly, WriteOnly: writeOnly,
		})
	}
	for name, written := range exports {
		made.Attributes = append(made.Attributes, &tfprotov6.SchemaAttribute{Name: name, Type: exportType(written), Computed: true})
	}
	return made
}

// The methods that validation and mocks never call are those of the embedded interface, which is nil.
type provider struct {
	tfprotov6.ProviderServer
	schemas *tfprotov6.GetProviderSchemaResponse
}

func (p *provider) GetMetadata(context.Context, *tfprotov6.GetMetadataRequest) (*tfprotov6.GetMetadataResponse, error) {
	return &tfprotov6.GetMetadataResponse{ServerCapabilities: p.schemas.ServerCapabilities}, nil
}

func (p *provider) GetProviderSchema(context.Context, *tfprotov6.GetProviderSchemaRequest) (*tfprotov6.GetProviderSchemaResponse, error) {
	return p.schemas, nil
}

func (p *provider) GetFunctions(context.Context, *tfprotov6.GetFunctionsRequest) (*tfprotov6.GetFunctionsResponse, error) {
	return &tfprotov6.GetFunctionsResponse{}, nil
}

func (p *provider) ValidateProviderConfig(_ context.Context, asked *tfprotov6.ValidateProviderConfigRequest) (*tfprotov6.ValidateProviderConfigResponse, error) {
	return &tfprotov6.ValidateProviderConfigResponse{PreparedConfig: asked.Config}, nil
}

func (p *provider) ValidateResourceConfig(context.Context, *tfprotov6.ValidateResourceConfigRequest) (*tfprotov6.ValidateResourceConfigResponse, error) {
	return &tfprotov6.ValidateResourceConfigResponse{}, nil
}

func (p *provider) ValidateDataResourceConfig(context.Context, *tfprotov6.ValidateDataResourceConfigRequest) (*tfprotov6.ValidateDataResourceConfigResponse, error) {
	return &tfprotov6.ValidateDataResourceConfigResponse{}, nil
}

func (p *provider) ValidateEphemeralResourceConfig(context.Context, *tfprotov6.ValidateEphemeralResourceConfigRequest) (*tfprotov6.ValidateEphemeralResourceConfigResponse, error) {
	return &tfprotov6.ValidateEphemeralResourceConfigResponse{}, nil
}

func (p *provider) ConfigureProvider(context.Context, *tfprotov6.ConfigureProviderRequest) (*tfprotov6.ConfigureProviderResponse, error) {
	return &tfprotov6.ConfigureProviderResponse{}, nil
}

func (p *provider) UpgradeResourceState(_ context.Context, asked *tfprotov6.UpgradeResourceStateRequest) (*tfprotov6.UpgradeResourceStateResponse, error) {
	return &tfprotov6.UpgradeResourceStateResponse{UpgradedState: &tfprotov6.DynamicValue{JSON: asked.RawState.JSON}}, nil
}

func (p *provider) StopProvider(context.Context, *tfprotov6.StopProviderRequest) (*tfprotov6.StopProviderResponse, error) {
	return &tfprotov6.StopProviderResponse{}, nil
}

func load(name string) (*provider, error) {
	text, err := os.ReadFile(os.Getenv("PROVIDER_SCHEMAS"))
	if err != nil {
		return nil, err
	}
	var file struct {
		Schemas map[string]binding `json:"schemas"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, err
	}
	own, known := file.Schemas["provider."+name]
	if !known {
		return nil, errors.New("no schemas of the provider " + name)
	}
	schemas := &tfprotov6.GetProviderSchemaResponse{
		ServerCapabilities:       &tfprotov6.ServerCapabilities{GetProviderSchemaOptional: false},
		Provider:                 &tfprotov6.Schema{Block: block(own.Arguments, nil)},
		ResourceSchemas:          map[string]*tfprotov6.Schema{},
		DataSourceSchemas:        map[string]*tfprotov6.Schema{},
		EphemeralResourceSchemas: map[string]*tfprotov6.Schema{},
	}
	for address, one := range file.Schemas {
		kind, of, dotted := strings.Cut(address, ".")
		made := &tfprotov6.Schema{Block: block(one.Arguments, one.Exports)}
		switch {
		case !dotted && strings.HasPrefix(kind, name+"_"):
			schemas.ResourceSchemas[kind] = made
		case kind == "data" && strings.HasPrefix(of, name+"_"):
			schemas.DataSourceSchemas[of] = made
		case kind == "ephemeral" && strings.HasPrefix(of, name+"_"):
			schemas.EphemeralResourceSchemas[of] = made
		}
	}
	return &provider{schemas: schemas}, nil
}

func main() {
	file := strings.TrimPrefix(filepath.Base(os.Args[0]), "terraform-provider-")
	name, _, _ := strings.Cut(file, "_")
	loaded, err := load(name)
	if err != nil {
		log.Fatal(err)
	}
	if err := tf6server.Serve(name, func() tfprotov6.ProviderServer { return loaded }); err != nil {
		log.Fatal(err)
	}
}
